//! Random histories of a server and its objects.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::daemon::{Daemon, deny, pod, server};
use super::fake_api::{self, Streams};

/// A small generator: the history need not be good, only the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_history_ends_as_if_only_the_end_had_been() {
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut api = server().await;
        // Pods of this node that leave stay isolated until their interface goes: only others come and go here.
        if seed % 2 == 0 {
            api.edit(|world| {
                world.streams = Streams::RefusedInStatus;
                world.page_max = 2;
            });
        }
        api.edit(|world| world.protobuf = seed % 3 != 0);
        let daemon = Daemon::start(&api).await;
        for _ in 0..60 {
            let name = random.below(8);
            match random.below(12) {
                0..=3 => {
                    let address = u8::try_from(20 + random.below(12)).expect("small");
                    let mut pod = pod(&format!("q{name}"), address, "other");
                    pod["metadata"]["labels"]["tier"] =
                        json!(["t", "u"][usize::try_from(random.below(2)).expect("small")]);
                    if random.below(4) == 0 {
                        pod["status"]["phase"] = json!("Succeeded");
                    }
                    if random.below(3) == 0 {
                        pod["metadata"]["uid"] = json!(format!("again-{}", random.below(1000)));
                    }
                    api.apply(pod);
                }
                4..=5 => api.delete("Pod", "a", &format!("q{name}")),
                6 => api.apply(deny(&format!("d{}", name % 3))),
                7 => api.delete("NetworkPolicy", "a", &format!("d{}", name % 3)),
                8 => api.restart().await,
                9 => {
                    api.kill().await;
                    api.edit(fake_api::World::compact);
                    api.delete("Pod", "a", &format!("q{name}"));
                    api.revive().await;
                }
                10 => api.edit(|world| {
                    // Sent twice.
                    if let Some(event) = world.events.last().cloned() {
                        world.version += 1;
                        world.events.push(fake_api::Event { version: world.version, ..event });
                    }
                }),
                _ => sleep(Duration::from_millis(random.below(60))).await,
            }
        }
        daemon.agrees(&api).await;
    }
}
