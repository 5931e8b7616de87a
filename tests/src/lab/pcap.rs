//! Reads captures made with `tcpdump -i any -y LINUX_SLL2`: just what the lab needs.
//!
//! Sources: draft-ietf-opsawg-pcap (file format), tcpdump.org's LINKTYPE_LINUX_SLL2
//! (the pseudo header that tells port and sender), RFC 826 (ARP), RFC 791 (IPv4).

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

const LINKTYPE_LINUX_SLL2: u32 = 276;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;

/// What a frame says, as far as ownership of an address is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// An ARP request or reply.
    Arp {
        /// 1 is a request, 2 a reply.
        operation: u16,
        /// The Ethernet address that the packet claims for `sender`.
        sender_mac: [u8; 6],
        /// The address the sender speaks for; 0.0.0.0 in a probe (RFC 5227).
        sender: Ipv4Addr,
        /// The address asked for, or announced.
        target: Ipv4Addr,
    },
    /// An IPv4 packet.
    Ip {
        /// Its source.
        source: Ipv4Addr,
        /// Its destination.
        destination: Ipv4Addr,
        /// Its protocol: 1 ICMP, 6 TCP, 17 UDP.
        protocol: u8,
    },
    /// Anything else.
    Other,
}

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When, in nanoseconds since 1970.
    pub t_ns: u64,
    /// The port of the switch on which it arrived (an interface index).
    pub port: u32,
    /// The Ethernet address that sent it.
    pub source_mac: [u8; 6],
    /// What it says.
    pub content: Content,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    array::<4>(bytes, at).map(Ipv4Addr::from)
}

fn content(ethertype: u16, payload: &[u8]) -> Option<Content> {
    match ethertype {
        ETHERTYPE_ARP => Some(Content::Arp {
            operation: be16(payload, 6)?,
            sender_mac: array(payload, 8)?,
            sender: address(payload, 14)?,
            target: address(payload, 24)?,
        }),
        ETHERTYPE_IPV4 => Some(Content::Ip {
            source: address(payload, 12)?,
            destination: address(payload, 16)?,
            protocol: *payload.get(9)?,
        }),
        _ => Some(Content::Other),
    }
}

/// protocol 2, reserved 2, interface 4, ARPHRD 2, packet type 1, address length 1, address 8.
fn frame(t_ns: u64, bytes: &[u8]) -> Option<Frame> {
    Some(Frame {
        t_ns,
        port: be32(bytes, 4)?,
        source_mac: array(bytes, 12)?,
        content: content(be16(bytes, 0)?, bytes.get(20..)?).unwrap_or(Content::Other),
    })
}

/// The frames of a capture file. A record cut short at the end (the capture was killed) is left out.
///
/// # Errors
/// The bytes are no little-endian pcap file of link type LINUX_SLL2.
pub fn parse(bytes: &[u8]) -> Result<Vec<Frame>> {
    let le32 = |at: usize| array(bytes, at).map(u32::from_le_bytes);
    let scale = match le32(0).context("the capture is empty")? {
        0xa1b2_3c4d => 1,
        0xa1b2_c3d4 => 1_000,
        magic => bail!("not a pcap file of this machine (it begins with {magic:#x})"),
    };
    let link_type = le32(20).context("the capture has no header")?;
    if link_type != LINKTYPE_LINUX_SLL2 {
        bail!("link type {link_type} instead of LINUX_SLL2; capture with `tcpdump -i any -y LINUX_SLL2`");
    }
    let mut frames = Vec::new();
    let mut at = 24;
    while let (Some(seconds), Some(fraction), Some(length)) = (le32(at), le32(at + 4), le32(at + 8)) {
        let length = usize::try_from(length).context("a record longer than memory")?;
        let Some(record) = bytes.get(at + 16..at + 16 + length) else { break };
        let t_ns = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * scale;
        frames.extend(frame(t_ns, record));
        at += 16 + length;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 128, LINKTYPE_LINUX_SLL2] {
            bytes.extend(word.to_le_bytes());
        }
        for (index, record) in (0_u32..).zip(records) {
            for word in [100, index, u32::try_from(record.len()).unwrap(), 60] {
                bytes.extend(word.to_le_bytes());
            }
            bytes.extend(record);
        }
        bytes
    }

    fn sll2(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ethertype.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 0, 0, 7, 0, 1, 1, 6, 0x52, 0x54, 0, 0x77, 0, 0x0b, 0, 0]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn arp_and_ip_are_told_apart_and_a_torn_record_is_left_out() {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 2, 0x52, 0x54, 0, 0x77, 0, 0x0b, 10, 77, 0, 100];
        arp.extend([0; 6]);
        arp.extend([10, 77, 0, 50]);
        let mut ip = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 77, 0, 50, 10, 77, 0, 100];
        ip.extend([0; 20]);
        let mut bytes = capture(&[sll2(ETHERTYPE_ARP, &arp), sll2(ETHERTYPE_IPV4, &ip), sll2(0x86dd, &[])]);
        let frames = parse(&bytes).unwrap();
        assert_eq!(frames.len(), 3);
        assert_eq!(frames[0].t_ns, 100_000_000_000);
        assert_eq!(frames[0].port, 7);
        assert_eq!(frames[0].source_mac, [0x52, 0x54, 0, 0x77, 0, 0x0b]);
        assert_eq!(
            frames[0].content,
            Content::Arp {
                operation: 2,
                sender_mac: [0x52, 0x54, 0, 0x77, 0, 0x0b],
                sender: Ipv4Addr::new(10, 77, 0, 100),
                target: Ipv4Addr::new(10, 77, 0, 50)
            }
        );
        assert_eq!(
            frames[1].content,
            Content::Ip {
                source: Ipv4Addr::new(10, 77, 0, 50),
                destination: Ipv4Addr::new(10, 77, 0, 100),
                protocol: 6
            }
        );
        assert_eq!(frames[2].content, Content::Other);
        bytes.truncate(bytes.len() - 3);
        assert_eq!(parse(&bytes).unwrap().len(), 2);
    }
}
