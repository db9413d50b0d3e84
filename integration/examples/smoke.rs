use flatfell_integration::*;
fn main() {
    let lab = Lab::new(LabConfig::default()).unwrap();
    println!("{}", lab.netns(Place::Node(1)).unwrap().name());
    let mut c = lab.netns(Place::Node(1)).unwrap().command("./target/debug/flatfell");
    let mut d = c.args(["run", "--manifests", "/tmp/smoke", "--node", "node1"]).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(800));
    for (a, b, p) in [(0, 1, 80), (0, 1, 81), (2, 1, 80), (1, 0, 80), (0, 2, 80), (1, 1, 5)] {
        println!(
            "{a}->{b}:{p} {:?}",
            lab.probe(&Probe::tcp(Place::pod(1, a), Place::pod(1, b).v4(), p)).unwrap().delivered
        );
        println!(
            "{a}->{b}:{p} v6 {:?}",
            lab.probe(&Probe::tcp(Place::pod(1, a), Place::pod(1, b).v6(), p)).unwrap().delivered
        );
    }
    for cmd in [
        "nft -s list ruleset",
        "curl -s localhost:9469/metrics",
        "./target/debug/flatfell status",
        "curl -s localhost:9469/readyz",
    ] {
        let o = lab.netns(Place::Node(1)).unwrap().command("sh").args(["-c", cmd]).output().unwrap();
        println!("== {cmd}\n{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    }
    d.kill().unwrap();
    d.wait().unwrap();
}
