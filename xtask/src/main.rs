//! Developer commands: `cargo xtask test | tools | bench | fuzz | deb`.

mod arrows;
mod bench;
mod deb;
mod fuzz;
mod process;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What a developer or CI runs.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must hold before a change lands: formatting, lints, documentation, import arrows, tests.
    Test,
    /// Brings the real components that tests and benchmarks meet into a cache outside the checkout.
    Tools,
    /// Runs the benchmarks and prints a table.
    Bench(bench::Options),
    /// Runs every fuzz target for a bounded time.
    Fuzz(fuzz::Options),
    /// Makes the Debian packages.
    Deb(deb::Options),
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The chain of causes is enough; a backtrace would hide what the failed command said.
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Test => test::run(),
        Command::Tools => tools::run(),
        Command::Bench(options) => bench::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Deb(options) => deb::run(options),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
