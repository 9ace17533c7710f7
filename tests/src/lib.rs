//! Scenarios over real processes and real clients, and the kit they are written with.
