//! The two text formats, and which of them a client wants.
//!
//! In: an Accept header; families and values. Out: OpenMetrics 1.0.0, or Prometheus' text format 0.0.4. What always holds: both say
//! the same; a client that does not ask for OpenMetrics by name gets the older format, which every reader knows.

use super::catalogue::{Family, Kind};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, which people read with curl.
    Text,
    /// With units, and an end that can be seen.
    OpenMetrics,
}

impl Format {
    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What an Accept header asks for (RFC 9110, 12.5.1); without one, the text format.
    pub fn accepted(header: Option<&str>) -> Self {
        let ranges: Vec<Range<'_>> = header.unwrap_or_default().split(',').filter_map(Range::parse).collect();
        let open = quality(&ranges, "application/openmetrics-text");
        let text = quality(&ranges, "text/plain");
        // A wildcard is no wish: only a name asks for the newer format.
        let is_named = ranges.iter().any(|range| range.name.eq_ignore_ascii_case("application/openmetrics-text"));
        if is_named && open > 0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }
}

/// One media range of an Accept header.
struct Range<'a> {
    name: &'a str,
    /// Thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    /// One whose version is of neither format is not asked for.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().filter(|name| name.contains('/'))?;
        let mut quality = 1000;
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match key.trim().to_ascii_lowercase().as_str() {
                "q" => quality = thousandths(value)?,
                "version" if !matches!(value, "1.0.0" | "0.0.1" | "0.0.4") => return None,
                _ => {}
            }
        }
        Some(Self { name, quality })
    }
}

/// `1`, `0.5` or `0.123` as thousandths; anything else is no quality.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let fraction: u16 = format!("{fraction:0<3}").parse().ok().filter(|_| is_number)?;
    match whole {
        "0" => Some(fraction),
        "1" if fraction == 0 => Some(1000),
        _ => None,
    }
}

/// The most specific range decides; of several with a name, the best.
fn quality(ranges: &[Range<'_>], name: &str) -> u16 {
    let family = name.split_once('/').map_or("", |(family, _)| family);
    let of = |wanted: &str| {
        ranges.iter().filter(|range| range.name.eq_ignore_ascii_case(wanted)).map(|range| range.quality).max()
    };
    of(name).or_else(|| of(&format!("{family}/*"))).or_else(|| of("*/*")).unwrap_or(0)
}

/// Writes what stands before a family's series.
pub fn header(out: &mut String, family: &Family, format: Format) {
    let suffix = if format == Format::Text { family.suffix() } else { "" };
    for (what, text) in [("HELP", family.help), ("TYPE", family.kind.word())] {
        out.extend(["# ", what, " ", family.name, suffix, " ", text, "\n"]);
    }
    if let Some(unit) = family.unit().filter(|_| format == Format::OpenMetrics) {
        out.extend(["# UNIT ", family.name, " ", unit, "\n"]);
    }
}

/// What OpenMetrics says, in the text format.
pub fn to_text(open: &str, families: &[Family]) -> String {
    let mut text = String::with_capacity(open.len());
    for line in open.lines() {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        let name = described.and_then(|line| line.split(' ').next());
        let is_counter =
            |name: &&str| families.iter().any(|family| family.name == *name && family.kind == Kind::Counter);
        match name.filter(is_counter) {
            Some(name) => {
                let (before, behind) = line.split_at("# HELP ".len() + name.len());
                text.extend([before, "_total", behind, "\n"]);
            }
            None if line.starts_with("# UNIT ") || line == "# EOF" => {}
            None => text.extend([line, "\n"]),
        }
    }
    text
}

/// Writes `{name="value",…}`, as both formats escape it; nothing without labels.
pub fn labels(out: &mut String, names: &[&str], values: &[&str]) {
    for (position, (name, value)) in names.iter().zip(values).enumerate() {
        out.extend([if position == 0 { "{" } else { "," }, name, "=\""]);
        for character in value.chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if !names.is_empty() {
        out.push('}');
    }
}

/// Writes a value behind a series, and ends its line; faster than `fmt` does.
pub fn value(out: &mut String, mut value: u64) {
    let mut text = *b" 00000000000000000000\n";
    let mut first = text.len() - 1;
    loop {
        first -= 1;
        text[first] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text[first - 1] = b' ';
    out.push_str(std::str::from_utf8(&text[first - 1..]).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::{COUNTERS_AGE, EVENT_TO_KERNEL, PROCESS_CPU, RULE_BYTES};
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (header, expected) in [
            (None, Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("APPLICATION/OpenMetrics-Text; Q=0.5"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0.5, text/plain;q=0.9"), Format::Text),
            (Some("application/openmetrics-text;q=0.5, text/plain;q=0.5"), Format::OpenMetrics),
            (Some("application/openmetrics-text;q=0.4, text/*;q=0.5"), Format::Text),
            (Some("application/openmetrics-text;q=0.4, */*;q=0.5"), Format::Text),
            (Some("application/openmetrics-text;q=0"), Format::Text),
            (Some("application/openmetrics-text;q=2"), Format::Text),
            (Some("application/openmetrics-text;version=9.0.0"), Format::Text),
            (
                Some("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7,text/plain;q=0.3"),
                Format::Text,
            ),
            (Some("image/png"), Format::Text),
            (Some(",;q=,=/"), Format::Text),
        ] {
            assert_eq!(Format::accepted(header), expected, "{header:?}");
        }
    }

    #[test]
    fn qualities_have_three_digits_at_most() {
        for (text, expected) in [("1", Some(1000)), ("0.75", Some(750)), ("0", Some(0)), ("1.000", Some(1000))] {
            assert_eq!(thousandths(text), expected, "{text}");
        }
        for text in ["1.1", "0.1234", "", "x", "-1", "0.+1"] {
            assert_eq!(thousandths(text), None, "{text}");
        }
    }

    #[test]
    fn a_counter_is_described_by_its_whole_name_in_the_text_format() {
        let mut open = String::new();
        let all = [RULE_BYTES, COUNTERS_AGE, EVENT_TO_KERNEL, PROCESS_CPU];
        all.iter().for_each(|family| header(&mut open, family, Format::OpenMetrics));
        assert!(open.contains("# TYPE flatfell_rule_bytes counter\n# UNIT flatfell_rule_bytes bytes\n"), "{open}");
        assert!(open.contains("# UNIT process_cpu_seconds seconds\n"), "{open}");
        let mut expected = String::new();
        all.iter().for_each(|family| header(&mut expected, family, Format::Text));
        assert_eq!(to_text(&format!("{open}# EOF\n"), &all), expected);
        assert!(expected.contains("# TYPE flatfell_rule_bytes_total counter\n") && !expected.contains("UNIT"));
        assert!(expected.contains("# TYPE flatfell_counters_age_seconds gauge\n"), "{expected}");
    }

    #[test]
    fn values_of_labels_are_escaped() {
        let mut out = String::new();
        labels(&mut out, &["a", "b"], &["x\"\\", "y\nz"]);
        assert_eq!(out, r#"{a="x\"\\",b="y\nz"}"#);
        out.clear();
        labels(&mut out, &[], &[]);
        assert_eq!(out, "");
    }

    #[test]
    fn values_are_those_that_fmt_writes() {
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = String::new();
            value(&mut out, number);
            assert_eq!(out, format!(" {number}\n"));
        }
    }
}
