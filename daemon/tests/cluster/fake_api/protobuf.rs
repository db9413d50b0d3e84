//! Objects as an API server writes them in protobuf; the numbers of fields are those of Kubernetes' `generated.proto`.
//!
//! In: pods, namespaces, lists of both and statuses as JSON. Out: their bytes. What always holds: what Go always writes is
//! written, empty or not; fields that nobody asks for stand between the others.

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// An object, or a list, with what says its kind.
pub fn object(value: &Value) -> Vec<u8> {
    let kind = value["kind"].as_str().unwrap_or_default();
    let raw = match kind {
        "Status" => status(value),
        _ => kind.strip_suffix("List").map_or_else(|| of_kind(kind, value), |kind| list(kind, value)),
    };
    let type_meta = Message::default().text(1, &value["apiVersion"]).text(2, &value["kind"]);
    let unknown = Message::default().field(1, &type_meta.0).field(2, &raw).field(3, b"").field(4, b"");
    [b"k8s\0".as_slice(), &unknown.0].concat()
}

/// An event of a watch.
pub fn event(event: &Value) -> Vec<u8> {
    let raw = Message::default().field(1, &object(&event["object"]));
    Message::default().text(1, &event["type"]).field(2, &raw.0).0
}

/// An event with its length before it.
pub fn framed(event: &[u8]) -> Vec<u8> {
    [&u32::try_from(event.len()).expect("a small event").to_be_bytes(), event].concat()
}

/// A message that is being written.
#[derive(Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(mut self, mut number: u64) -> Self {
        while number > 0x7f {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
        self
    }

    pub fn field(self, number: u64, bytes: &[u8]) -> Self {
        let length = u64::try_from(bytes.len()).expect("a length");
        let mut this = self.varint(number << 3 | 2).varint(length);
        this.0.extend_from_slice(bytes);
        this
    }

    pub fn number(self, number: u64, value: i64) -> Self {
        self.varint(number << 3).varint(value.cast_unsigned())
    }

    fn text(self, number: u64, value: &Value) -> Self {
        self.field(number, value.as_str().unwrap_or_default().as_bytes())
    }

    /// A text that Go has a pointer to.
    fn optional(self, number: u64, value: &Value) -> Self {
        if value.is_null() { self } else { self.text(number, value) }
    }

    fn time(self, number: u64, value: &Value) -> Self {
        let Some(text) = value.as_str() else { return self.field(number, b"") };
        let seconds = text.parse::<Timestamp>().expect("a time").as_second();
        self.field(number, &Self::default().number(1, seconds).number(2, 0).0)
    }

    fn texts(self, number: u64, value: &Value) -> Self {
        let pairs = value.as_object().into_iter().flatten();
        pairs.fold(self, |this, (key, value)| {
            this.field(number, &Self::default().field(1, key.as_bytes()).text(2, value).0)
        })
    }

    fn each(self, number: u64, values: &Value, write: impl Fn(&Value) -> Vec<u8>) -> Self {
        values.as_array().into_iter().flatten().fold(self, |this, value| this.field(number, &write(value)))
    }
}

fn of_kind(kind: &str, value: &Value) -> Vec<u8> {
    let metadata = Message::default().field(1, &metadata(&value["metadata"]));
    match kind {
        "Pod" => metadata.field(2, &spec(&value["spec"])).field(3, &pod_status(&value["status"])).0,
        "Namespace" => metadata.field(2, &Message::default().field(1, b"kubernetes").0).field(3, b"").0,
        _ => panic!("{kind} is never asked for"),
    }
}

fn list(kind: &str, value: &Value) -> Vec<u8> {
    let metadata = &value["metadata"];
    let metadata =
        Message::default().field(1, b"").text(2, &metadata["resourceVersion"]).text(3, &metadata["continue"]);
    Message::default().field(1, &metadata.0).each(2, &value["items"], |item| of_kind(kind, item)).0
}

fn status(value: &Value) -> Vec<u8> {
    let metadata = Message::default().field(1, b"").field(2, b"").field(3, b"");
    let words = Message::default().field(1, &metadata.0).text(2, &value["status"]).text(3, &value["message"]);
    words.text(4, &value["reason"]).number(6, value["code"].as_i64().unwrap_or_default()).0
}

fn metadata(value: &Value) -> Vec<u8> {
    let names = Message::default().text(1, &value["name"]).field(2, b"").text(3, &value["namespace"]).field(4, b"");
    let versions = names.text(5, &value["uid"]).text(6, &value["resourceVersion"]).number(7, 0);
    let created = versions.time(8, &value["creationTimestamp"]);
    let times = match &value["deletionTimestamp"] {
        Value::Null => created,
        deleted => created.time(9, deleted).number(10, 30),
    };
    let texts = times.texts(11, &value["labels"]).texts(12, &value["annotations"]);
    texts.each(17, &value["managedFields"], |manager| Message::default().text(1, &manager["manager"]).0).0
}

fn spec(value: &Value) -> Vec<u8> {
    let volumes = Message::default().each(1, &value["volumes"], |volume| Message::default().text(1, &volume["name"]).0);
    let containers = volumes.each(2, &value["containers"], container).field(3, b"Always").number(4, 30);
    let node =
        containers.text(10, &value["nodeName"]).number(11, value["hostNetwork"].as_bool().unwrap_or(false).into());
    node.each(20, &value["initContainers"], container).0
}

fn container(value: &Value) -> Vec<u8> {
    let port = |port: &Value| {
        let number = port["containerPort"].as_i64().unwrap_or_default();
        Message::default()
            .text(1, &port["name"])
            .number(2, 0)
            .number(3, number)
            .text(4, &port["protocol"])
            .field(5, b"")
            .0
    };
    let ports = Message::default().text(1, &value["name"]).field(2, b"image").each(6, &value["ports"], port);
    ports.field(14, b"IfNotPresent").number(16, 0).optional(24, &value["restartPolicy"]).0
}

fn pod_status(value: &Value) -> Vec<u8> {
    let words = Message::default().text(1, &value["phase"]).field(3, b"").field(4, b"").text(6, &value["podIP"]);
    words.field(9, b"BestEffort").each(12, &value["podIPs"], |address| Message::default().text(1, &address["ip"]).0).0
}
