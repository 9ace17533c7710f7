//! JWTs and JWKS: parse, verify, sign. No runtime, no clock: the caller gives the time.
