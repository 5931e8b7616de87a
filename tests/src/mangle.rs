//! Spoils good input: what a torn write, a bad disk, a slip of the finger or an ill-willed sender makes of it. Included by
//! path in the fuzz tests of every crate; it needs none itself.

#![allow(dead_code, reason = "each test includes it for its part")]

/// One thing done to the input: what, where (of its length), with what.
pub type Edit = (u8, u16, u8);

/// Words that break careless parsers.
const WORDS: &[&[u8]] = &[
    b"18446744073709551615",
    b"18446744073709551616",
    b"-9223372036854775808",
    b"99999999999999999999999999999",
    b"4294967296",
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"null",
    b"true",
    b"{",
    b"}",
    b"[[",
    b"]]",
    b"[",
    b"\"",
    b"'",
    b"\\",
    b"\\u0000",
    b"\0",
    b"\n",
    b"\r\n",
    b"=",
    b",",
    b":",
    b"#",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"\xe2\x80\xae",
    b"<![CDATA[",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"9223372036854775807h",
    b"5124095576030431h",
    b"0s",
    b"255.255.255.255",
    b"fe80::1%lo",
];

/// The input with these edits, at most four times as long and a little.
pub fn mangle(input: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    let most = input.len() * 4 + 4096;
    for (kind, at, value) in edits {
        let at = usize::from(*at) * bytes.len().max(1) / (usize::from(u16::MAX) + 1);
        let length = (usize::from(*value) + 1).min(bytes.len() - at.min(bytes.len()));
        let word = WORDS[usize::from(*value) % WORDS.len()];
        match kind % 9 {
            0 => bytes.truncate(at),
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (value % 8);
                }
            }
            2 => bytes.insert(at, *value),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let part = bytes[at..at + length].to_vec();
                bytes.splice(at..at, part);
            }
            5 => drop(bytes.splice(at..at, word.iter().copied())),
            6 | 7 => replace(&mut bytes, at, word),
            _ => swap_lines(&mut bytes, at, usize::from(*value)),
        }
        bytes.truncate(most);
    }
    bytes
}

/// The next number or quoted word becomes another.
fn replace(bytes: &mut Vec<u8>, at: usize, word: &[u8]) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(begin) = bytes[at..].iter().position(is_digit).map(|offset| at + offset) else { return };
    let end = bytes[begin..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |len| begin + len);
    bytes.splice(begin..end, word.iter().copied());
}

fn swap_lines(bytes: &mut Vec<u8>, at: usize, by: usize) {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let one = bytes[..at].iter().filter(|byte| **byte == b'\n').count();
    let other = (one + by) % lines.len();
    lines.swap(one, other);
    *bytes = lines.join(&b'\n');
}
