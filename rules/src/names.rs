//! Names in nft: readable, unique, legal.
//!
//! In: a kind, the full identity of the thing, and a part for people. Out: `kind-hash-human`. What always holds: it
//! begins with a letter (nft's scanner takes no digit first), has only characters the scanner takes in a bare word
//! (letters, digits, `/`, `-`, `_`, `.`) and fits [`NAME_MAX`]; equal identities give equal names, different ones
//! different names (64 bits of SHA-256).

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::ruleset::Name;

/// Longest name made here, in bytes; the kernel takes 255 (NFT_NAME_MAXLEN), people much less.
pub const NAME_MAX: usize = 64;

/// Longest comment, in bytes: the kernel's user data attribute as nft reads it holds 128 with its NUL.
pub const COMMENT_MAX: usize = 127;

/// The 64 bits of an identity, as 16 hexadecimal digits.
pub fn hash(identity: &str) -> String {
    Sha256::digest(identity.as_bytes()).iter().take(8).fold(String::with_capacity(16), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `kind-hash-human`, cut to [`NAME_MAX`]; characters that nft does not take in a bare word become `_`.
pub fn name(kind: &str, identity: &str, human: &str) -> Name {
    hashed(kind, &hash(identity), human)
}

/// The same with a hash that is known.
pub fn hashed(kind: &str, hash: &str, human: &str) -> Name {
    let mut name = format!("{kind}-{hash}-");
    let room = NAME_MAX.saturating_sub(name.len());
    name.extend(
        human
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.') { c } else { '_' })
            .take(room),
    );
    name.into()
}

/// A comment that fits: text of nft's printable characters, cut at [`COMMENT_MAX`] with `...` where it is longer.
pub fn comment(text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' || c == ' ' { c } else { '_' }).collect();
    if clean.len() <= COMMENT_MAX { clean } else { format!("{}...", &clean[..COMMENT_MAX - 3]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_names_of_kubernetes_fit_and_stay_apart() {
        let long = "a".repeat(253);
        let first = name("pod", &format!("{long}1"), &long);
        let second = name("pod", &format!("{long}2"), &long);
        assert_eq!(first.len(), NAME_MAX);
        assert_ne!(first, second);
    }

    #[test]
    fn a_comment_is_cut_where_the_kernel_would_refuse_it() {
        assert_eq!(comment(&"x".repeat(127)).len(), 127);
        let cut = comment(&"x".repeat(128));
        assert_eq!(cut.len(), 127);
        assert!(cut.ends_with("..."));
    }

    #[test]
    fn quotes_and_control_characters_cannot_leave_a_comment() {
        assert_eq!(comment("a\"b\\c\nd"), "a_b_c_d");
    }
}
