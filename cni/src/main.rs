//! The binary `flatfell-cni`: one call of a container runtime.

use std::io::{self, Write};
use std::process::ExitCode;

use flatfell_cni::plugin;

fn main() -> ExitCode {
    let variables = |name: &str| std::env::var(name).ok();
    let (text, code) = match plugin::run(variables, io::stdin().lock()) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}
