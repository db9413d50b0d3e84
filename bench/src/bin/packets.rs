//! scratch
use std::time::{Duration, Instant};
use flatfell_bench::packets::{bed::Bed, cpu, row::{Row, Kind}, rounds, size::Size, traffic::{self, Traffic}};
use flatfell_bench::packets::rounds::Side;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rules: usize = args.first().map_or(Ok(3), |v| v.parse())?;
    let count: usize = args.get(1).map_or(Ok(20), |v| v.parse())?;
    let mut bed = Bed::new()?;
    let begin = Instant::now();
    let size = Size { rules, ..Size::default() };
    let flag = std::env::var("FLAGS").unwrap_or_default();
    let flags: Vec<&str> = flag.split_whitespace().collect();
    bed.load_flatfell(&size, &flags)?;
    if let Ok(file) = std::env::var("EDIT") {
        for node in [1u8, 2] {
            let at = flatfell_integration::Place::Node(node);
            let space = bed.lab().netns(at)?;
            let listing = ["inet", "bridge"].map(|family| space.feed("nft", &["list", "table", family, "flatfell-2a"], "")).into_iter().collect::<Result<Vec<_>, _>>()?.concat();
            let edited = space.feed("python3", &[&file], &listing)?;
            bed.lab().nft(at, &format!("delete table inet flatfell-2a\ndelete table bridge flatfell-2a\n{edited}"))?;
        }
    }
    println!("{size}: loaded after {:?}", begin.elapsed());
    for kind in Kind::ALL {
        if std::env::var("KINDS").is_ok_and(|kinds| !kinds.contains(&format!("{kind:?}"))) { continue; }
        if std::env::var("PERF").is_ok() { bed.switch(Side::Column)?; let mut traffic = Traffic::new(bed.lab(), Row::near(kind))?; for _ in 0..count { bed.forget_flows()?; traffic.slice(Duration::from_millis(300))?; } continue; }
        let row = Row::near(kind);
        bed.switch(Side::Column)?;
        anyhow::ensure!(kind == Kind::NewFlow || traffic::is_denied(bed.lab(), row)? || kind == Kind::Datagram, "no policy");
        let mut traffic = Traffic::new(bed.lab(), row)?;
        let begin = Instant::now();
        let out = rounds::paired(count, |side| {
            bed.switch(side)?;
            if matches!(kind, Kind::NewFlow | Kind::Connect) { bed.forget_flows()?; }
            traffic.slice(Duration::from_millis(5))?;
            traffic.slice(Duration::from_millis(40))
        })?;
        println!("{row}: {:.3} ({:.3} to {:.3}) {:.0} ns {:.0} ns  {:?} load {}", out.ratio.median, out.ratio.low, out.ratio.high, out.baseline, out.column, begin.elapsed(), cpu::load()?);
        let _ = Side::Baseline;
    }
    Ok(())
}
