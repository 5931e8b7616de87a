//! What a step sends, as text: `\r \n \t \0 \\ \" \'` and `\xHH`, so that TOML's literal strings can say every byte.

/// Bytes as text that [`unescape`] reads back; ASCII, without a single quote.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\\' => text.push_str("\\\\"),
            b'\'' => text.push_str("\\x27"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// The bytes that text stands for. Characters outside ASCII stand for their UTF-8.
///
/// # Errors
/// One sentence about the first escape that is none.
pub fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'r') => b'\r',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(same @ (b'\\' | b'"' | b'\'')) => same,
            Some(b'x') => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let byte = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
                byte.ok_or("\\x is followed by two hexadecimal digits, as in \\x0a")?
            }
            Some(other) => {
                return Err(format!(
                    "\\{} is no escape: there are \\r \\n \\t \\0 \\\\ \\\" \\' \\xHH",
                    other.escape_ascii()
                ));
            }
            None => return Err("it ends with a single \\: write \\\\ for one".into()),
        });
    }
    Ok(bytes)
}
