//! The control plane: mesh and policy files to compiled snapshots, pushed by delta ADS.
