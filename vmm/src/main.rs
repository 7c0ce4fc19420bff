//! The `vmm` command.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use vmm::cli::{Cli, CliCommand, EXIT_FAILED, run};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NETYARD_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        CliCommand::Run(args) => run::run(*args),
        CliCommand::Check => vmm::check::main(),
        CliCommand::Ctl(args) => vmm::client::main(&args),
        CliCommand::Device(args) => vmm::client::device(&args),
        CliCommand::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vmm", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        CliCommand::Man { folder } => {
            let written = match folder {
                Some(folder) => clap_mangen::generate_to(Cli::command(), folder),
                None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()),
            };
            match written {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("vmm: the manual page cannot be written: {error}");
                    ExitCode::from(EXIT_FAILED)
                }
            }
        }
    }
}
