//! The certificate authority of this mesh, in this process: what `up` asks of it as its administrator.

use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::SpiffeId;
