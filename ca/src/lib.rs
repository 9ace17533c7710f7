//! The certificate authority: authenticate, authorize, check the CSR, sign, record, reply.
