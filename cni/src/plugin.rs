//! The plugin's commands.
//!
//! In: variables and standard input. Out: what is printed, as success or as failure. What always holds: ADD and CHECK print the previous
//! result as it came; DEL, GC and STATUS print nothing.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value, json};

use crate::call::{self, Command, Variables};
use crate::client;
use crate::conf::{self, Conf, OnUnavailable, Previous};
use crate::error::{CniError, NEWEST, VERSIONS};
use crate::message::{Answer, Request, Sandbox};

/// How long the daemon may take to hear of the end of a sandbox, or to say how it is: nobody waits for more than its word.
const SHORTLY: Duration = Duration::from_secs(1);

/// One call: what to print on success, or the error to print.
pub fn run(variables: impl Variables, input: impl Read) -> Result<String, String> {
    let mut version = NEWEST.to_owned();
    call(&variables, input, &mut version).map_err(|error| error.to_json(&version))
}

fn call(variables: &impl Variables, input: impl Read, version: &mut String) -> Result<String, CniError> {
    let command = call::command(variables)?;
    let bytes = conf::read(input)?;
    *version = conf::version(&bytes);
    if command == Command::Version {
        return Ok(json!({"cniVersion": version.as_str(), "supportedVersions": VERSIONS}).to_string());
    }
    let conf = Conf::parse(&bytes)?;
    match command {
        Command::Add => add(variables, &conf),
        Command::Check => check(variables, &conf),
        Command::Del => delete(variables, &conf),
        Command::Gc => Ok(collect(&conf)),
        Command::Status => status(&conf),
        Command::Version => Ok(String::new()),
    }
}

fn previous(conf: &Conf) -> Result<&Value, CniError> {
    let missing = || CniError::Configuration("no prevResult: this plugin is chained behind another".to_owned());
    conf.previous.as_ref().ok_or_else(missing)
}

/// The sandbox that is spoken of; none where it is no pod's or has no address.
fn sandbox(variables: &impl Variables, conf: &Conf) -> Result<Option<Sandbox>, CniError> {
    let attachment = call::attachment(variables)?;
    let Previous { addresses, mac, host_interface } = Previous::parse(previous(conf)?, &attachment.interface)?;
    let netns = call::netns(variables)?;
    let pod = call::pod(variables)?.filter(|_| !addresses.is_empty());
    Ok(pod.map(|(namespace, name, uid)| Sandbox {
        attachment,
        netns,
        namespace,
        name,
        uid,
        addresses,
        mac,
        host_interface,
    }))
}

fn add(variables: &impl Variables, conf: &Conf) -> Result<String, CniError> {
    let result = previous(conf)?.to_string();
    let Some(sandbox) = sandbox(variables, conf)? else { return Ok(result) };
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    let request = |left: Duration| Request::Add(sandbox.clone(), u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let why = match client::ask(&conf.socket, conf.timeout, request) {
        Ok(Answer::Done) => return Ok(result),
        Ok(Answer::NotYet(why) | Answer::Refused(why)) => why,
        Err(error) => format!("the daemon at {} does not answer: {error}", conf.socket.display()),
    };
    match conf.on_unavailable {
        // The kernel drops what it does not know: the pod is closed until the daemon says otherwise.
        OnUnavailable::Closed => Ok(result),
        OnUnavailable::Fail => Err(CniError::Later(format!("policy of pod {pod} is not in the kernel: {why}"))),
    }
}

fn check(variables: &impl Variables, conf: &Conf) -> Result<String, CniError> {
    let result = previous(conf)?.to_string();
    let Some(sandbox) = sandbox(variables, conf)? else { return Ok(result) };
    match (client::ask(&conf.socket, SHORTLY, |_| Request::Check(sandbox.clone())), conf.on_unavailable) {
        (Ok(Answer::Done), _) => Ok(result),
        (Ok(Answer::NotYet(why) | Answer::Refused(why)), _) => Err(CniError::NotEnforced(why)),
        // The kernel goes on with what it has.
        (Err(_), OnUnavailable::Closed) => Ok(result),
        (Err(error), OnUnavailable::Fail) => Err(CniError::Later(format!("the daemon does not answer: {error}"))),
    }
}

fn delete(variables: &impl Variables, conf: &Conf) -> Result<String, CniError> {
    let attachment = call::attachment(variables)?;
    // A daemon that is away forgets the sandbox when its interface is gone, or at the next GC.
    let _ = client::ask(&conf.socket, Duration::ZERO, |_| Request::Delete(attachment.clone()));
    Ok(String::new())
}

fn collect(conf: &Conf) -> String {
    if let Some(attachments) = &conf.attachments {
        let _ = client::ask(&conf.socket, Duration::ZERO, |_| Request::Keep(attachments.clone()));
    }
    String::new()
}

fn status(conf: &Conf) -> Result<String, CniError> {
    if conf.on_unavailable == OnUnavailable::Closed {
        return Ok(String::new());
    }
    match client::ask(&conf.socket, SHORTLY, |_| Request::Status) {
        Ok(Answer::Done) => Ok(String::new()),
        Ok(Answer::NotYet(why) | Answer::Refused(why)) => Err(CniError::Unavailable(why)),
        Err(error) => Err(CniError::Unavailable(format!("the daemon does not answer: {error}"))),
    }
}
