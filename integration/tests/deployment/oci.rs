//! The image as a container of the DaemonSet's, run by runc as a kubelet's runtime would run it.
//!
//! In: the binary of this build, the pod template, a lab node. Out: the container's process, its probes' answers. What
//! always holds: the security context is the rendered one, field by field, and a field that is not understood here fails
//! the test; the container goes with its handle.
#![allow(dead_code, clippy::expect_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::{Lab, Place};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Objects, container, root, run, template, text, tool};

/// containerd's default profile for a container whose only capability is CAP_NET_ADMIN, as its 2.4 makes it.
const SECCOMP: &str = include_str!("seccomp.json");
const PATIENCE: Duration = Duration::from_secs(20);
const NODE: &str = "node1";

/// What is outside the image and the manifest: files of the test.
pub struct Mount<'a> {
    pub host: &'a Path,
    pub inside: &'a str,
}

/// A running container in the first node's network.
pub struct Container<'a> {
    lab: &'a Lab,
    directory: TempDir,
    name: String,
    process: Option<Child>,
    listen: String,
}

/// The image, unpacked: its root directory and its configuration, and how many bytes its blobs are together.
pub struct Image {
    pub root: PathBuf,
    pub config: Value,
    pub compressed: u64,
}

/// The image of this build; made once a process.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let own = std::env::current_exe().expect("the test's own path");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(own.file_name().expect("a name"));
        fs::remove_dir_all(&directory).ok();
        fs::create_dir_all(&directory).expect("a directory");
        unpack(&directory)
    })
}

fn unpack(into: &Path) -> Image {
    let archive = into.join("image.tar");
    run(Command::new("sh").arg(root().join("deploy/image.sh")).args([
        "--binary".as_ref(),
        binary().as_os_str(),
        "--output".as_ref(),
        archive.as_os_str(),
    ]))
    .expect("deploy/image.sh");
    let (layout, rootfs) = (into.join("layout"), into.join("rootfs"));
    untar(&archive, &layout);
    let read = |path: PathBuf| -> Value {
        serde_json::from_slice(&fs::read(&path).expect("a file of the image")).expect("JSON")
    };
    let blob = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let index = read(layout.join("index.json"));
    let manifest = read(blob(text(&index, "/manifests/0/digest")));
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().for_each(|layer| untar(&blob(text(layer, "/digest")), &rootfs));
    let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("blobs");
    let compressed = blobs.map(|blob| blob.expect("a blob").metadata().expect("a file").len()).sum();
    Image { root: rootfs, config: read(blob(text(&manifest, "/config/digest"))), compressed }
}

fn untar(archive: &Path, into: &Path) {
    fs::create_dir_all(into).expect("a directory");
    run(Command::new("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(into)).expect("tar");
}

/// The daemon's binary, beside the directory of the tests.
fn binary() -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    let path = own.parent().and_then(Path::parent).expect("a directory").join("flatfell");
    assert!(path.is_file(), "run `cargo build --workspace --bins` first");
    path
}

impl<'a> Container<'a> {
    /// Starts the container of these objects in the lab's first node, with more environment and mounts.
    pub fn start(lab: &'a Lab, objects: &Objects, environment: &[&str], mounts: &[Mount<'_>]) -> Self {
        let directory = TempDir::new().expect("a directory");
        let name = lab.netns(Place::Node(1)).expect("the node").name().to_owned();
        let mut config = config(objects, image(), &name);
        list(&mut config, "/process/env").extend(environment.iter().map(|&variable| json!(variable)));
        list(&mut config, "/mounts").extend(mounts.iter().map(bind));
        fs::write(directory.path().join("config.json"), config.to_string()).expect("config.json");
        let listen = variables(objects).into_iter().find(|(name, _)| name == "FLATFELL_LISTEN").expect("an address").1;
        let mut this = Self { lab, directory, name, process: None, listen };
        let log = fs::File::create(this.directory.path().join("log")).expect("a log");
        let mut command = this.runc("run");
        command.arg("--bundle").arg(this.directory.path()).arg(&this.name);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        this.process = Some(command.spawn().expect("runc"));
        this
    }

    /// Waits until the readiness probe of these objects succeeds.
    pub fn wait_ready(&self, objects: &Objects) {
        let probe = &container(objects)["readinessProbe"]["httpGet"];
        assert_eq!(text(probe, "/port"), text(container(objects), "/ports/0/name"));
        let address = format!("{}:{}", text(probe, "/host"), container(objects)["ports"][0]["containerPort"]);
        assert_eq!(address, self.listen, "the lab's daemons listen on the loopback address");
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < deadline {
            last = self.get(text(probe, "/path")).unwrap_or_else(|error| error.to_string());
            if last.starts_with("HTTP/1.1 200") {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("not ready: {last}\n{}", self.log());
    }

    /// The answer to a GET in the node's network.
    pub fn get(&self, path: &str) -> std::io::Result<String> {
        let ask = || {
            let mut stream = TcpStream::connect(&self.listen)?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: flatfell\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        self.lab.netns(Place::Node(1)).expect("the node").run(ask).expect("the node")
    }

    /// Runs a program in the container, as `kubectl exec` does.
    pub fn exec(&self, arguments: &[&str]) -> Result<String, String> {
        run(self.runc("exec").arg(&self.name).args(arguments))
    }

    /// What the kernel says of the daemon's process: the value of a line of /proc/PID/status.
    pub fn process_status(&self, field: &str) -> String {
        let state: Value = serde_json::from_str(&run(self.runc("state").arg(&self.name)).expect("runc")).expect("JSON");
        let status = fs::read_to_string(format!("/proc/{}/status", state["pid"])).expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        line.unwrap_or_else(|| panic!("no {field}: {status}")).trim().to_owned()
    }

    /// Ends it as a kubelet does, and waits.
    pub fn stop(&mut self) {
        run(self.runc("kill").args([&self.name, "TERM"])).expect("runc kill");
        let status = self.process.take().expect("running").wait().expect("runc");
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn runc(&self, verb: &str) -> Command {
        let mut command = Command::new(tool("runc"));
        command.arg("--root").arg(self.directory.path().join("state")).arg(verb);
        command
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of the container:\n{}", self.log());
        }
        if let Some(mut process) = self.process.take() {
            run(self.runc("delete").args(["--force", &self.name])).ok();
            process.wait().ok();
        }
    }
}

/// What a runtime makes of the pod template and the image.
fn config(objects: &Objects, image: &Image, network: &str) -> Value {
    let spec = &template(objects)["spec"];
    assert_eq!(spec["hostNetwork"], true);
    let context = &container(objects)["securityContext"];
    let (entry, arguments) = (&image.config["config"]["Entrypoint"], &container(objects)["args"]);
    let both = [entry, arguments].into_iter().flat_map(|part| part.as_array().expect("a list")).cloned();
    let paths = image.config["config"]["Env"].as_array().expect("a list").iter().cloned();
    let environment = variables(objects).into_iter().map(|(name, value)| json!(format!("{name}={value}")));
    let capabilities = capabilities(context);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": both.collect::<Vec<Value>>(),
            "env": paths.chain(environment).collect::<Vec<Value>>(),
            "cwd": image.config["config"]["WorkingDir"],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": context["allowPrivilegeEscalation"] == false,
        },
        "root": {"path": image.root, "readonly": context["readOnlyRootFilesystem"]},
        "mounts": mounts(objects),
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "mount"},
                {"type": "network", "path": format!("/run/netns/{network}")},
            ],
            "seccomp": seccomp(context),
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Those that are left of all when what is dropped is dropped and what is added is added.
fn capabilities(context: &Value) -> Vec<String> {
    assert_eq!(context["privileged"], false);
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    let added = context["capabilities"]["add"].as_array().expect("a list").iter();
    added.map(|name| format!("CAP_{}", name.as_str().expect("a name"))).collect()
}

fn seccomp(context: &Value) -> Value {
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(context["capabilities"]["add"], json!(["NET_ADMIN"]), "the profile is made for these capabilities");
    serde_json::from_str(SECCOMP).expect("JSON")
}

/// The runtime's own mounts, and the volumes.
fn mounts(objects: &Objects) -> Value {
    let usual = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": usual}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    let volumes = template(objects)["spec"]["volumes"].as_array().expect("volumes");
    for mount in container(objects)["volumeMounts"].as_array().expect("mounts") {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("its volume");
        assert_eq!(volume["emptyDir"]["medium"], "Memory", "{volume}");
        mounts.push(
            json!({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": ["mode=777"]}),
        );
    }
    json!(mounts)
}

/// The container's environment; what the downward API would fill in is the lab's.
fn variables(objects: &Objects) -> Vec<(String, String)> {
    let value = |variable: &Value| match variable.pointer("/valueFrom/fieldRef/fieldPath") {
        Some(path) if path == "spec.nodeName" => NODE.to_owned(),
        Some(path) => panic!("the lab knows no {path}"),
        None => text(variable, "/value").to_owned(),
    };
    let variables = container(objects)["env"].as_array().expect("env").iter();
    variables.map(|variable| (text(variable, "/name").to_owned(), value(variable))).collect()
}

fn bind(mount: &Mount<'_>) -> Value {
    json!({"destination": mount.inside, "type": "bind", "source": mount.host, "options": ["rbind", "ro"]})
}

fn list<'a>(config: &'a mut Value, pointer: &str) -> &'a mut Vec<Value> {
    config.pointer_mut(pointer).and_then(Value::as_array_mut).expect("a list")
}
