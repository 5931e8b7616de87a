//! Netlink messages: written into one buffer that is kept, read in place.

use super::sys::Socket;
use std::{io, time::Duration};

const HEADER: usize = 16;
const ALIGN: usize = 4;
/// "Nested" and "byte order" bits of an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
/// The kernel answers at once; this bounds a wait for what it never sends.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const CREATE: u16 = 0x400;

const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;

/// Messages under construction. Cleared, not freed: after the first use nothing is allocated.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    sequence: u32,
    first: u32,
}

/// Where a message or nest began; to be handed to the closing call.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(super) struct Mark(usize);

impl Writer {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), sequence: 1, first: 1 }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.first = self.sequence;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Does the answer `sequence` belong to a message written since [`Writer::clear`]?
    pub(super) fn is_mine(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.first) < self.sequence.wrapping_sub(self.first)
    }

    pub(super) fn begin(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.sequence = self.sequence.wrapping_add(1);
        self.put(payload);
        mark
    }

    pub(super) fn end(&mut self, Mark(start): Mark) {
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16) -> Mark {
        let mark = Mark(self.bytes.len());
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | 0x8000).to_ne_bytes());
        mark
    }

    pub(super) fn end_nest(&mut self, Mark(start): Mark) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// An attribute whose value is these parts, one after the other.
    pub(super) fn attribute(&mut self, kind: u16, parts: &[&[u8]]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.put(&[]);
    }

    fn put(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        while !self.bytes.len().is_multiple_of(ALIGN) {
            self.bytes.push(0);
        }
    }
}

/// One message received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) payload: &'a [u8],
}

impl Message<'_> {
    /// The error number of an acknowledgement (0: done); `None` for any other message.
    pub(super) fn errno(&self) -> Option<i32> {
        if self.kind != MSG_ERROR {
            return None;
        }
        Some(self.payload.first_chunk().map_or(libc::EPROTO, |code| i32::from_ne_bytes(*code).saturating_neg()))
    }

    fn is_done(&self) -> bool {
        self.kind == MSG_DONE
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

/// The messages of one datagram. Ends at the first that is malformed.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok().filter(|length| *length >= HEADER)?;
        let message =
            Message { kind: u16_at(bytes, 4)?, sequence: u32_at(bytes, 8)?, payload: bytes.get(HEADER..length)? };
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in `bytes`: type and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of this type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Sends the one request in `writer` and waits for its acknowledgement.
///
/// # Errors
/// What the kernel answered.
pub(super) fn request(socket: &Socket, writer: &Writer) -> io::Result<()> {
    exchange(socket, writer, |_| {})
}

/// Sends the one dump request in `writer` and hands every message of the answer to `each`.
///
/// # Errors
/// What the kernel answered.
pub(super) fn exchange(socket: &Socket, writer: &Writer, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
    socket.send(writer.bytes())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        if !socket.wait(ANSWER_LIMIT)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = match socket.receive(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        for message in messages(&buffer[..length]).filter(|message| writer.is_mine(message.sequence)) {
            match message.errno() {
                Some(0) => return Ok(()),
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
                None if message.is_done() => return Ok(()),
                None => each(message),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::with_capacity(256);
        let message = writer.begin(7, REQUEST, &[1, 2, 3, 4]);
        let nest = writer.nest(3);
        writer.attribute(1, &[b"abc", b"de"]);
        writer.end_nest(nest);
        writer.end(message);
        let got: Vec<_> = messages(writer.bytes()).collect();
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].kind, &got[0].payload[..4]), (7, &[1u8, 2, 3, 4][..]));
        assert!(writer.is_mine(got[0].sequence));
        let inner = attribute(&got[0].payload[4..], 3).unwrap();
        assert_eq!(attribute(inner, 1), Some(&b"abcde"[..]));
        writer.clear();
        assert!(!writer.is_mine(1));
    }

    proptest::proptest! {
        /// Of any bytes: iterations end, and nothing is read past the end.
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), kind in 0..9u16) {
            let mut seen = 0;
            for message in messages(&bytes) {
                seen += HEADER + message.payload.len();
                let _ = (message.errno(), message.is_done());
                seen += attributes(message.payload).count();
            }
            assert!(seen <= bytes.len() * 2);
            assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
            let _ = attribute(&bytes, kind);
        }
    }

    #[test]
    fn rubbish_ends_the_iteration() {
        assert_eq!(messages(&[1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0, 5, 5, 5, 5]).count(), 0);
    }
}
