//! `alcazar ca install`: what the root has signed is put where the CA finds it.

use std::path::Path;
use std::process::ExitCode;

use alcazar_ca::{Config, ceremony};
use alcazar_service::{clock, config};

use crate::say;

pub(super) fn run(file: &Path, from: &Path) -> anyhow::Result<ExitCode> {
    let config: Config = config::load(file)?;
    let folder = ceremony::install(&config, from, clock::now())?;
    Ok(say(&format!(
        "the set fits this CA and is in {}; a running CA takes it over within seconds\n",
        folder.display()
    )))
}
