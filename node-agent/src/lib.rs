//! The node agent: attests, renews, and serves identities over SDS.
