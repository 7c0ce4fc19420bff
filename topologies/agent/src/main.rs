//! The agent inside a guest: runs what a client outside asks for over virtio-serial ports.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use netyard_agent::launch::{self, Launch};
use netyard_agent::ports::Ports;
use netyard_agent::power;
use netyard_agent::serve::Launcher;

const USAGE: &str = "usage: netyard-agent [--root DIR] [--power-button COMMAND] [--announce TEXT]

Serves every virtio-serial port named netyard.agent.N: a client outside runs commands here.

  --root DIR              commands get this root directory
  --power-button COMMAND  run it when the power button is pressed
  --announce TEXT         print it once the ports that are there are served
";

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == launch::ARGUMENT) {
        let code = Launch::from_arguments(arguments.drain(1..)).map_or(2, |launch| launch.run());
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let Some(options) = Options::read(arguments) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netyard-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Options {
    root: Option<PathBuf>,
    power_button: Option<PathBuf>,
    announce: Option<String>,
}

impl Options {
    fn read(arguments: Vec<OsString>) -> Option<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(option) = arguments.next() {
            let value = arguments.next()?;
            match option.to_str()? {
                "--root" => options.root = Some(value.into()),
                "--power-button" => options.power_button = Some(value.into()),
                "--announce" => options.announce = Some(value.into_string().ok()?),
                _ => return None,
            }
        }
        Some(options)
    }
}

fn run(options: Options) -> std::io::Result<()> {
    let launcher = Launcher {
        program: "/proc/self/exe".into(),
        root: options.root,
    };
    let ports = Ports::listen(launcher)?;
    ports.serve_present()?;
    if let Some(action) = &options.power_button {
        power::obey(action)?;
    }
    if let Some(text) = &options.announce {
        println!("{text}");
    }
    loop {
        ports.wait()?;
        ports.serve_present()?;
    }
}
