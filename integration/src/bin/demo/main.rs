//! `make demo`: a small shop on two nodes, before and after its policies.
//!
//! In: nothing (`--listing`: only print what nft lists on node 2, for docs/dataplane.md). Out: chapters for people; exit code 0
//! only if everything was as it must be. What always holds: real packets, the real daemon, and nothing stays behind.

mod chapters;
mod daemon;
mod interrupt;
mod matrix;
mod screen;
mod shop;
mod stage;
mod talk;

use std::process::ExitCode;

use screen::{Colour, Screen};

fn main() -> ExitCode {
    let listing = std::env::args().nth(1).is_some_and(|argument| argument == "--listing");
    let outcome = interrupt::listen().map_err(Into::into).and_then(|()| match listing {
        true => chapters::listing(),
        false => chapters::play(),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::came() => {
            eprintln!("\ndemo: interrupted; namespaces and daemons are gone");
            ExitCode::from(130)
        }
        Err(error) => {
            let screen = Screen::detect();
            eprintln!("\n{}", screen.paint(Colour::Red, &format!("demo: {error:#}")));
            ExitCode::FAILURE
        }
    }
}
