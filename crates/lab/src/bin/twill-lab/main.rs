//! `twill-lab`: shows the pod network at work (`demo`), keeps one up to play in (`shell`), or measures (`bench`). It prints only
//! what it has seen happen, and its exit code says whether that was as expected.

mod backend;
mod bench;
mod cut;
mod demo;
mod paint;
mod picture;
mod shell;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt as _;

use backend::Backend;

const HELP: &str = "\
twill-lab: a pod network of four nodes in namespaces of its own; needs no root, touches nothing, leaves nothing.

Usage: twill-lab [demo]                 show every backend: routes, pings, harm and repair (default)
       twill-lab demo --picture FILE    write the picture of the demo that the README shows
       twill-lab shell [--backend B]    build one network and open a shell in it
                                        (B: vxlan, host-gw, vxlan-direct, auto; default vxlan)
       twill-lab bench scale|churn      measure a daemon among thousands of peers; twill-lab bench --help
       twill-lab --help

TWILL_BIN      the daemon to run (default: `twill` beside this program)
LAB_PATIENCE   how many times longer than usual to wait, for a slow machine (default: 1)
NO_COLOR       no colours";

enum Wish {
    Demo,
    Picture(PathBuf),
    Shell(Backend),
    Bench(bench::Options),
    Help(&'static str),
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(why) => {
            eprintln!("twill-lab: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let wish = wish().map_err(|e| format!("{e}; see twill-lab --help"))?;
    if let Wish::Help(text) = wish {
        println!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let twill = demo::topology().executable();
    if !Path::exists(&twill) {
        return Err(format!("no daemon at {}: run `cargo build`, or set TWILL_BIN", twill.display()));
    }
    if let Wish::Picture(file) = wish {
        let picture = picture::draw()?;
        std::fs::write(&file, picture).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !matches!(wish, Wish::Bench(_)) {
        lab::enter::enter()?;
    }
    // The lab fails by panicking; a reader of the demo wants the reason, not the source line.
    std::panic::set_hook(Box::new(|panic| eprintln!("twill-lab: {}", panic.payload_as_str().unwrap_or("?"))));
    Ok(match wish {
        Wish::Shell(backend) => shell::run(backend),
        Wish::Bench(options) => bench::run(&options)?,
        _ => demo::run(),
    })
}

fn wish() -> Result<Wish, lexopt::Error> {
    let mut args = lexopt::Parser::from_env();
    let mut wish = Wish::Demo;
    while let Some(arg) = args.next()? {
        wish = match (arg, wish) {
            (Long("help") | Short('h'), _) => return Ok(Wish::Help(HELP)),
            (Value(name), Wish::Demo) if name == "demo" => Wish::Demo,
            (Value(name), Wish::Demo) if name == "shell" => Wish::Shell(Backend::Vxlan),
            (Value(name), Wish::Demo) if name == "bench" => {
                let options = bench::Options::parse(&mut args)?;
                return Ok(options.map_or(Wish::Help(bench::HELP), Wish::Bench));
            }
            (Long("picture"), Wish::Demo) => Wish::Picture(args.value()?.into()),
            (Long("backend"), Wish::Shell(_)) => Wish::Shell(args.value()?.parse_with(Backend::named)?),
            (other, _) => return Err(other.unexpected()),
        };
    }
    Ok(wish)
}
