//! The guard's timed elements, as netlink transactions: nothing but bytes, so that the renewal thread may use it.

use super::{
    IfName, Place,
    netlink::{self, ACK, DUMP, REQUEST, Writer},
    sys::Socket,
};
use kage_agent_core::KernelOp;
use kage_types::Vip;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Name of every table of ours.
pub(super) const TABLE: &str = "kagemusha";

// linux/netfilter.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_ARP: u8 = 3;
pub(super) const NFPROTO_NETDEV: u8 = 5;
pub(super) const NFPROTO_BRIDGE: u8 = 7;
pub(super) const SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
pub(super) const NFT_MSG_DELSETELEM: u16 = 14;
pub(super) const NFT_MSG_GETGEN: u16 = 16;
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_DATA_VALUE: u16 = 1;

/// A message of the nf_tables subsystem.
pub(super) const fn nft(message: u16) -> u16 {
    (SUBSYS_NFTABLES << 8) | message
}

/// `struct nfgenmsg`.
pub(super) fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Armed,
    Live,
    /// Tap guard: on whose behalf this host may announce. Keyed by address alone, hence not conditional: on a
    /// takeover between two guests of one host it belongs to both for a moment.
    Held,
}

impl Group {
    fn set(self, vip: Vip) -> &'static str {
        match (self, vip.address()) {
            (Group::Armed, IpAddr::V4(_)) => "armed4",
            (Group::Armed, IpAddr::V6(_)) => "armed6",
            (Group::Live, IpAddr::V4(_)) => "live4",
            (Group::Live, IpAddr::V6(_)) => "live6",
            (Group::Held, IpAddr::V4(_)) => "held4",
            (Group::Held, IpAddr::V6(_)) => "held6",
        }
    }
}

/// Writes [`KernelOp`]s as transactions.
pub(super) struct Encoder<'a> {
    out: &'a mut Writer,
    vip: Vip,
    place: Place,
    /// Is there a `netdev` table too (host guard, Linux 5.16)?
    egress: bool,
    changes: usize,
}

impl<'a> Encoder<'a> {
    /// Writes the transaction; returns how many acknowledgements it will get.
    pub(super) fn encode(op: &KernelOp, place: Place, egress: bool, out: &'a mut Writer) -> usize {
        out.clear();
        let mut this = Self { out, vip: op.vip(), place, egress, changes: 0 };
        this.frame(NFNL_MSG_BATCH_BEGIN);
        match op {
            KernelOp::Arm { life, .. } => this.refresh(Group::Armed, *life),
            KernelOp::Open { life, .. } => {
                this.delete(Group::Armed);
                // An element that outlived a lost table of another family must not keep its old timeout.
                this.refresh(Group::Live, *life);
                this.refresh(Group::Held, *life);
            }
            KernelOp::Renew { life, .. } => {
                this.delete(Group::Live);
                this.add(Group::Live, *life);
                this.refresh(Group::Held, *life);
            }
            KernelOp::Close { .. } => {
                for group in [Group::Armed, Group::Live, Group::Held] {
                    this.remove(group);
                }
            }
        }
        this.frame(NFNL_MSG_BATCH_END);
        this.changes
    }

    /// In force again with this life, whether or not it was there. (Adding what is there does nothing; without it
    /// the deletion of what isn't there would undo the transaction.)
    fn refresh(&mut self, group: Group, life: Duration) {
        self.remove(group);
        self.add(group, life);
    }

    /// Gone, whether or not it was there.
    fn remove(&mut self, group: Group) {
        // The life of what is deleted again at once does not matter.
        self.add(group, Duration::from_secs(1));
        self.delete(group);
    }

    fn add(&mut self, group: Group, life: Duration) {
        self.each_family(group, |this, family| this.change(family, NFT_MSG_NEWSETELEM, group, Some(life)));
    }

    fn delete(&mut self, group: Group) {
        self.each_family(group, |this, family| this.change(family, NFT_MSG_DELSETELEM, group, None));
    }

    /// The families whose table has a set of this group.
    fn each_family(&mut self, group: Group, mut act: impl FnMut(&mut Self, u8)) {
        match (self.place, group) {
            (Place::Tap { .. }, _) => act(self, NFPROTO_BRIDGE),
            (Place::Host, Group::Held) => {}
            (Place::Host, Group::Armed) => act(self, NFPROTO_INET),
            (Place::Host, Group::Live) => {
                act(self, NFPROTO_INET);
                if self.vip.address().is_ipv4() {
                    act(self, NFPROTO_ARP);
                }
                if self.egress {
                    act(self, NFPROTO_NETDEV);
                }
            }
        }
    }

    fn frame(&mut self, kind: u16) {
        let message = self.out.begin(kind, REQUEST, &nfgenmsg(0, SUBSYS_NFTABLES));
        self.out.end(message);
    }

    fn change(&mut self, family: u8, kind: u16, group: Group, life: Option<Duration>) {
        let flags = REQUEST | ACK | if kind == NFT_MSG_NEWSETELEM { netlink::CREATE } else { 0 };
        let message = self.out.begin(nft(kind), flags, &nfgenmsg(family, 0));
        self.out.attribute(NFTA_SET_ELEM_LIST_TABLE, &[TABLE.as_bytes(), &[0]]);
        self.out.attribute(NFTA_SET_ELEM_LIST_SET, &[group.set(self.vip).as_bytes(), &[0]]);
        let elements = self.out.nest(NFTA_SET_ELEM_LIST_ELEMENTS);
        let element = self.out.nest(NFTA_LIST_ELEM);
        let key = self.out.nest(NFTA_SET_ELEM_KEY);
        let port: &[u8] = match (&self.place, group) {
            (Place::Tap { ifname }, Group::Armed | Group::Live) => ifname.key(),
            (Place::Tap { .. }, Group::Held) | (Place::Host, _) => &[],
        };
        // Each field of a concatenated key fills whole registers of 4 bytes: these all do.
        match self.vip.address() {
            IpAddr::V4(address) => self.out.attribute(NFTA_DATA_VALUE, &[port, &address.octets()]),
            IpAddr::V6(address) => self.out.attribute(NFTA_DATA_VALUE, &[port, &address.octets()]),
        }
        self.out.end_nest(key);
        if let Some(life) = life {
            let millis = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
            self.out.attribute(NFTA_SET_ELEM_TIMEOUT, &[&millis.to_be_bytes()]);
        }
        self.out.end_nest(element);
        self.out.end_nest(elements);
        self.out.end(message);
        self.changes += 1;
    }
}

/// A `live` element found in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveElement {
    /// Whose.
    pub vip: Vip,
    /// Where.
    pub place: Place,
    /// How much longer it is in force unless renewed.
    pub remaining: Duration,
}

/// The elements of the set `live4` or `live6` of our table in `family`.
///
/// # Errors
/// `ENOENT` when there is no such set.
pub(super) fn list_live(socket: &Socket, family: u8, set: &str) -> io::Result<Vec<LiveElement>> {
    let mut found = Vec::new();
    list(socket, family, set, |element| found.extend(live(element)))?;
    Ok(found)
}

/// The VIPs in the set `listed4` or `listed6` of our table in `family`.
///
/// # Errors
/// `ENOENT` when there is no such set.
pub(super) fn list_fixed(socket: &Socket, family: u8, set: &str) -> io::Result<Vec<Vip>> {
    let mut found = Vec::new();
    list(socket, family, set, |element| found.extend(key(element).map(|(vip, _)| vip)))?;
    Ok(found)
}

fn list(socket: &Socket, family: u8, set: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut writer = Writer::with_capacity(128);
    let message = writer.begin(nft(NFT_MSG_GETSETELEM), REQUEST | DUMP, &nfgenmsg(family, 0));
    writer.attribute(NFTA_SET_ELEM_LIST_TABLE, &[TABLE.as_bytes(), &[0]]);
    writer.attribute(NFTA_SET_ELEM_LIST_SET, &[set.as_bytes(), &[0]]);
    writer.end(message);
    netlink::exchange(socket, &writer, |message| {
        let body = message.payload.get(4..).unwrap_or(&[]);
        let elements = netlink::attribute(body, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or(&[]);
        netlink::attributes(elements).for_each(|(_, element)| each(element));
    })
}

fn live(element: &[u8]) -> Option<LiveElement> {
    let (vip, place) = key(element)?;
    let millis = u64::from_be_bytes(*netlink::attribute(element, NFTA_SET_ELEM_EXPIRATION)?.first_chunk()?);
    (millis > 0).then_some(LiveElement { vip, place, remaining: Duration::from_millis(millis) })
}

fn key(element: &[u8]) -> Option<(Vip, Place)> {
    let key = netlink::attribute(netlink::attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let (place, address) = match key.len() {
        4 | 16 => (Place::Host, key),
        20 | 32 => {
            let (port, address) = key.split_first_chunk()?;
            (Place::Tap { ifname: IfName::from_key(*port)? }, address)
        }
        _ => return None,
    };
    let address = match address.len() {
        4 => IpAddr::V4(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        _ => IpAddr::V6(Ipv6Addr::from(*address.first_chunk::<16>()?)),
    };
    Some((Vip::new(address).ok()?, place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kage_types::Time;

    fn kinds(op: &KernelOp, place: Place, egress: bool) -> Vec<(u16, u8)> {
        let mut writer = Writer::with_capacity(4096);
        let changes = Encoder::encode(op, place, egress, &mut writer);
        let all: Vec<_> =
            netlink::messages(writer.bytes()).map(|message| (message.kind & 0xff, message.payload[0])).collect();
        assert_eq!(changes, all.len() - 2);
        all[1..all.len() - 1].to_vec()
    }

    #[test]
    fn a_renewal_deletes_everywhere_before_it_adds() {
        let life = Duration::from_millis(700);
        let op = KernelOp::Renew { vip: "10.78.0.1".parse().unwrap(), life, not_after: Time::FAR };
        let (add, delete) = (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM);
        let (inet, arp, netdev) = (NFPROTO_INET, NFPROTO_ARP, NFPROTO_NETDEV);
        assert_eq!(
            kinds(&op, Place::Host, true),
            [(delete, inet), (delete, arp), (delete, netdev), (add, inet), (add, arp), (add, netdev)]
        );
        let op = KernelOp::Renew { vip: "fd78::1".parse().unwrap(), life, not_after: Time::FAR };
        assert_eq!(kinds(&op, Place::Host, false), [(delete, inet), (add, inet)]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(0..40u8, 0..120)) {
            let _ = (live(&bytes), key(&bytes));
        }
    }

    #[test]
    fn elements_are_read_as_written() {
        let ifname = IfName::new("vnet7").unwrap();
        let mut writer = Writer::with_capacity(4096);
        let op = KernelOp::Arm { vip: "fd78::1".parse().unwrap(), life: Duration::from_millis(700) };
        Encoder::encode(&op, Place::Tap { ifname }, false, &mut writer);
        let message = netlink::messages(writer.bytes()).nth(3).unwrap();
        let list = netlink::attribute(&message.payload[4..], NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
        let (_, element) = netlink::attributes(list).next().unwrap();
        assert_eq!(netlink::attribute(element, NFTA_SET_ELEM_TIMEOUT), Some(&700u64.to_be_bytes()[..]));
        let key = netlink::attribute(netlink::attribute(element, NFTA_SET_ELEM_KEY).unwrap(), NFTA_DATA_VALUE).unwrap();
        assert_eq!(&key[..16], b"vnet7\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(key.len(), 32);
    }
}
