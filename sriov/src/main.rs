//! `sriov`: virtual functions and PCI passthrough on the host's side.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use sriov::apply::{self, ApplyError};
use sriov::bind;
use sriov::check::{self, Finding, Level};
use sriov::cli::{Cli, Command, Format, SetArgs};
use sriov::create;
use sriov::declared::Declared;
use sriov::inventory;
use sriov::plan;
use sriov::record::{RecordError, Records};
use sriov::render;
use sriov::sysfs::Sysfs;
use sriov::vf::Netlink;

const FAILED: u8 = 1;
const REFUSED_BY_HOST: u8 = 3;

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sriov: no runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(run(&cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sriov: {error}");
            ExitCode::from(exit_code(error.as_ref()))
        }
    }
}

/// What lacks a privilege was refused by the host; everything else failed.
fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let denied = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
        if denied || error.to_string().ends_with("run as root") {
            return REFUSED_BY_HOST;
        }
        cause = error.source();
    }
    FAILED
}

async fn run(cli: &Cli) -> Outcome {
    let sysfs = Sysfs::at(&cli.root).dry_run(cli.dry_run);
    let records = Records::at(&cli.records);
    match &cli.command {
        Command::List { all } => list(cli, &sysfs, *all).await,
        Command::Check { names } => check(cli, &sysfs, names).await,
        Command::Create { pf, count, permit } => {
            let _turn = turn(&sysfs, &records)?;
            let netlink = Netlink::open()?;
            let made = create::create(&sysfs, Some(&netlink), &records, pf, *count, (*permit).into()).await?;
            if !cli.dry_run {
                for (index, bdf) in made {
                    println!("{pf}:{index}  {bdf}");
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Set(args) => set(&sysfs, args).await,
        Command::Bind {
            bdf,
            group,
            allow_default_route,
        } => {
            let _turn = turn(&sysfs, &records)?;
            let options = bind::Options {
                group: *group,
                default_route: *allow_default_route,
                owner: None,
            };
            for taken in bind::bind(&sysfs, &records, *bdf, options)? {
                report(cli, &format!("{taken} is bound to {}", bind::VFIO_PCI));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Release { bdf, group, .. } => {
            let _turn = turn(&sysfs, &records)?;
            let released = match bdf {
                Some(bdf) if *group => bind::release_group(&sysfs, &records, *bdf)?,
                Some(bdf) => {
                    bind::release(&sysfs, &records, *bdf)?;
                    vec![*bdf]
                }
                None => {
                    let all = records.all();
                    for bdf in &all {
                        bind::release(&sysfs, &records, *bdf)?;
                    }
                    all
                }
            };
            for bdf in released {
                report(cli, &format!("{bdf} is released"));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Destroy { pf, permit } => {
            let _turn = turn(&sysfs, &records)?;
            create::destroy(&sysfs, &records, pf, (*permit).into()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Plan { file } => {
            let plan = plan::plan(&sysfs, &records, file)?;
            match cli.format {
                Format::Json => println!("{}", serde_json::to_string_pretty(&plan)?),
                Format::Table => {
                    for allocation in &plan.allocations {
                        println!(
                            "{} nic {} gets {}:{}",
                            allocation.node, allocation.nic, allocation.pf, allocation.index
                        );
                    }
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Apply { file, permit } => {
            let declared = Declared::read(file)?;
            let _turn = turn(&sysfs, &records)?;
            let netlink = Netlink::open()?;
            let changed = apply::apply(&sysfs, &netlink, &records, &declared, (*permit).into()).await?;
            for line in &changed {
                report(cli, line);
            }
            if changed.is_empty() {
                println!("nothing to change");
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "sriov", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { folder } => {
            manual(folder.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn manual(folder: Option<&Path>) -> std::io::Result<()> {
    match folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder),
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()),
    }
}

/// Waits until no other process prepares functions or gives them back; a dry run changes nothing and waits for nobody.
fn turn(sysfs: &Sysfs, records: &Records) -> Result<Option<File>, RecordError> {
    if sysfs.is_dry_run() {
        Ok(None)
    } else {
        records.turn().map(Some)
    }
}

/// One line about what was done; a dry run has told what would be.
fn report(cli: &Cli, line: &str) {
    if !cli.dry_run {
        println!("{line}");
    }
}

async fn list(cli: &Cli, sysfs: &Sysfs, all: bool) -> Outcome {
    let text = if all {
        let functions = inventory::functions(sysfs);
        match cli.format {
            Format::Table => render::all_functions(&functions),
            Format::Json => serde_json::to_string_pretty(&functions)?,
        }
    } else {
        let netlink = Netlink::open().ok();
        let pfs = render::physical_functions(sysfs, netlink.as_ref()).await;
        match cli.format {
            Format::Table => render::tables(&pfs),
            Format::Json => serde_json::to_string_pretty(&pfs)?,
        }
    };
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

async fn check(cli: &Cli, sysfs: &Sysfs, names: &[String]) -> Outcome {
    let functions = if names.is_empty() {
        check::candidates(sysfs)
    } else {
        names
            .iter()
            .map(|name| inventory::find(sysfs, name))
            .collect::<Result<_, _>>()?
    };
    let netlink = Netlink::open().ok();
    let mut findings = check::host(sysfs);
    for function in &functions {
        findings.extend(check::function(sysfs, function));
        if let (Some(netlink), Some(net), Some(_)) = (&netlink, function.first_net(), function.sriov) {
            let attributes = netlink.attributes(&net.name, net.index).await.unwrap_or_default();
            findings.extend(check::addresses(&net.name, &attributes));
        }
    }
    match cli.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Format::Table => findings.iter().for_each(print_finding),
    }
    let failed = findings.iter().any(|finding| finding.level == Level::Failure);
    Ok(if failed {
        ExitCode::from(FAILED)
    } else {
        ExitCode::SUCCESS
    })
}

fn print_finding(finding: &Finding) {
    let mark = match finding.level {
        Level::Ok => "ok  ",
        Level::Warning => "warn",
        Level::Failure => "FAIL",
    };
    println!("{mark}  {}", finding.text);
    if let Some(cure) = &finding.cure {
        println!("      cure: {cure}");
    }
}

async fn set(sysfs: &Sysfs, args: &SetArgs) -> Outcome {
    let (function, _) = inventory::find_pf(sysfs, &args.pf)?;
    let net = function
        .first_net()
        .ok_or_else(|| ApplyError::NoInterface(args.pf.clone()))?;
    let settings = args.settings(net.mac);
    if sysfs.is_dry_run() {
        println!("{}", settings.as_ip_command(&net.name, args.vf));
        return Ok(ExitCode::SUCCESS);
    }
    Netlink::open()?
        .set(&net.name, net.index, args.vf, &settings)
        .await?;
    Ok(ExitCode::SUCCESS)
}
