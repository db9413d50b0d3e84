//! Known traffic.
//!
//! In: a lab with the pods below. Out: packets of known size and number. What always holds: whatever is allowed is waited for, packet by
//! packet, so that no buffer loses any; bytes are those of IP.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use flatfell_integration::{Lab, Place, Probe, Protocol};

/// On node 1: isolated for ingress, with a rule for [`CLIENT`].
pub const WEB: Place = Place::pod(1, 0);
/// On node 1: isolated for ingress, without a rule.
pub const DB: Place = Place::pod(1, 1);
/// On node 1: an audited policy.
pub const IDLE: Place = Place::pod(1, 2);
/// On node 2: isolated for egress, with a rule for [`WEB`].
pub const CLIENT: Place = Place::pod(2, 0);
/// On node 2: open.
pub const STRANGER: Place = Place::pod(2, 1);

/// The port that rules allow, UDP.
pub const PORT: u16 = 8080;

/// Connections from the client to the web pod, and exchanges in each.
pub const CONNECTIONS: u32 = 20;
const EXCHANGES: u32 = 10;
const REQUEST: usize = 1000;
const ANSWER: usize = 500;
/// IPv4 and UDP.
const HEADERS: usize = 28;
/// Payload of what nobody answers: 100 bytes with headers.
const SILENT: usize = 72;

/// Packets of the allowed connections, both ways.
pub const ALLOWED_PACKETS: u32 = 2 * CONNECTIONS * EXCHANGES;
/// Packets from the stranger that web's isolation drops.
pub const DENIED_WEB: u32 = 1000;
/// Packets from the stranger that db's isolation drops.
pub const DENIED_DB: u32 = 3500;
/// Connections of one packet from the stranger to the idle pod.
pub const AUDITED: u32 = 100;
/// Router advertisements from one pod to another.
pub const ADVERTISEMENTS: u32 = 150;

/// Bytes of the allowed connections, both ways.
pub fn allowed_bytes() -> f64 {
    let exchange = u32::try_from(REQUEST + ANSWER + 2 * HEADERS).expect("small");
    f64::from(CONNECTIONS * EXCHANGES * exchange)
}

/// Bytes of so many packets that nobody answers.
pub fn silent_bytes(packets: u32) -> f64 {
    f64::from(packets) * 100.0
}

fn socket(lab: &Lab, place: Place, port: u16) -> UdpSocket {
    let at = SocketAddr::new(place.v4().into(), port);
    let socket = lab.netns(place).expect("a pod").run(|| UdpSocket::bind(at)).expect("a namespace").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time limit");
    socket
}

/// Sends all of it.
pub fn send(lab: &Lab) {
    exchange(lab);
    denied(lab, WEB, PORT, DENIED_WEB);
    denied(lab, DB, 5432, DENIED_DB);
    audited(lab);
    let advertisement = Probe::new(WEB, DB.link_local(), Protocol::RouterAdvertisement, 0).in_frame(&[]);
    for _ in 0..3 {
        let third = vec![advertisement.clone(); usize::try_from(ADVERTISEMENTS / 3).expect("few")];
        assert!(lab.probes(&third).expect("probes").iter().all(|outcome| !outcome.delivered));
    }
}

fn exchange(lab: &Lab) {
    let server = socket(lab, WEB, PORT);
    let mut buffer = [0; 2048];
    for connection in 0..CONNECTIONS {
        let client = socket(lab, CLIENT, 0);
        for exchange in 0..EXCHANGES {
            let what = format!("exchange {exchange} of connection {connection}");
            client.send_to(&[1; REQUEST], (WEB.v4(), PORT)).expect(&what);
            let (length, from) = server.recv_from(&mut buffer).expect(&what);
            assert_eq!(length, REQUEST);
            server.send_to(&[2; ANSWER], from).expect(&what);
            assert_eq!(client.recv(&mut buffer).expect(&what), ANSWER);
        }
    }
}

/// Slowly enough for every queue on the way.
fn denied(lab: &Lab, to: Place, port: u16, packets: u32) {
    let stranger = socket(lab, STRANGER, 0);
    for number in 0..packets {
        stranger.send_to(&[3; SILENT], (to.v4(), port)).expect("sent");
        if number % 20 == 19 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn audited(lab: &Lab) {
    let server = socket(lab, IDLE, 9000);
    let mut buffer = [0; 2048];
    for _ in 0..AUDITED {
        socket(lab, STRANGER, 0).send_to(&[4; SILENT], (IDLE.v4(), 9000)).expect("sent");
        assert_eq!(server.recv(&mut buffer).expect("an audited packet passes"), SILENT);
    }
}
