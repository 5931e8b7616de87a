//! Who spoke as a virtual address, and when: the evidence for "never two owners".
//!
//! A machine speaks as an address when it sends ARP with it as sender (claims, answers,
//! announcements) or an IP packet from it. A probe (RFC 5227: sender 0.0.0.0) is no claim.
//! Frames are taken where they enter the switch, before any cut: what a severed machine
//! says into the void counts as well.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::nodes::{by_mac, mac_text};
use super::pcap::{Content, Frame};
use super::run::ms;

/// Silence that ends an interval of speech. The client asks far more often than this.
const SILENCE_NS: u64 = 1_000_000_000;

/// One time at which a machine spoke as the address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Word {
    /// Nanoseconds since 1970.
    pub t_ns: u64,
    /// The machine, by the Ethernet address that sent the frame.
    pub machine: String,
    /// What it was: `arp request`, `arp reply`, `arp announcement` or `ip`.
    pub kind: &'static str,
    /// The port (interface index) of the switch on which it came.
    pub port: u32,
}

/// A time during which one machine spoke as the address without a long silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// The machine.
    pub machine: String,
    /// Its first frame.
    pub start_ns: u64,
    /// Its last frame.
    pub end_ns: u64,
    /// How many frames.
    pub frames: usize,
}

/// What a capture tells about one address.
#[derive(Clone, Debug, Serialize)]
pub struct Speech {
    /// The address.
    pub vip: Ipv4Addr,
    /// Who owned it, in order of the first frame.
    pub intervals: Vec<Interval>,
    /// How often the speaker changed. A drill with one takeover and one fail-back has two.
    pub changes: usize,
    /// The longest time during which two machines spoke as the address; 0.001 for a single frame.
    pub two_owner_ms: f64,
    /// How long after its successor's first frame a former owner was last heard: a single frame
    /// that sat in a frozen machine's queue makes this long and `two_owner_ms` short.
    pub latest_stray_ms: f64,
    /// Frames of one machine inside the time of another, at most 20 of them.
    pub strays: Vec<Word>,
    /// How many such frames there are.
    pub stray_count: usize,
}

/// The frames in which anybody speaks as `vip`, in order of time.
#[must_use]
pub fn words(frames: &[Frame], vip: Ipv4Addr) -> Vec<Word> {
    let mut words: Vec<Word> = frames
        .iter()
        .filter_map(|frame| {
            let kind = match frame.content {
                Content::Arp { sender, .. } if sender != vip => return None,
                Content::Arp { target, .. } if target == vip => "arp announcement",
                Content::Arp { operation: 1, .. } => "arp request",
                Content::Arp { .. } => "arp reply",
                Content::Ip { source, .. } if source == vip => "ip",
                Content::Ip { .. } | Content::Other => return None,
            };
            let machine =
                by_mac(&frame.source_mac).map_or_else(|| mac_text(&frame.source_mac), |node| node.name.to_owned());
            Some(Word { t_ns: frame.t_ns, machine, kind, port: frame.port })
        })
        .collect();
    words.sort_by_key(|word| word.t_ns);
    words
}

fn intervals(words: &[Word]) -> Vec<Interval> {
    let mut done: Vec<Interval> = Vec::new();
    let mut open: BTreeMap<&str, Interval> = BTreeMap::new();
    for word in words {
        let fresh = || Interval { machine: word.machine.clone(), start_ns: word.t_ns, end_ns: word.t_ns, frames: 0 };
        let interval = open.entry(&word.machine).or_insert_with(fresh);
        if word.t_ns - interval.end_ns > SILENCE_NS {
            done.push(std::mem::replace(interval, fresh()));
        }
        interval.end_ns = word.t_ns;
        interval.frames += 1;
    }
    done.extend(open.into_values());
    done.sort_by_key(|interval| interval.start_ns);
    // The same owner after a silence is still the owner, if nobody else spoke in between.
    let mut merged: Vec<Interval> = Vec::new();
    for interval in done {
        let alone = |last: &Interval| {
            !words
                .iter()
                .any(|word| word.machine != last.machine && last.end_ns < word.t_ns && word.t_ns < interval.start_ns)
        };
        match merged.last_mut() {
            Some(last) if last.machine == interval.machine && alone(last) => {
                last.end_ns = interval.end_ns;
                last.frames += interval.frames;
            }
            Some(_) | None => merged.push(interval),
        }
    }
    merged
}

/// Analyses a capture for one address.
#[must_use]
pub fn analyse(frames: &[Frame], vip: Ipv4Addr) -> Speech {
    let words = words(frames, vip);
    let intervals = intervals(&words);
    let (mut two_owner_ns, mut latest_stray_ns) = (0, 0);
    for (index, first) in intervals.iter().enumerate() {
        // Sorted by start: whatever begins before `first` ends, overlaps it.
        for second in &intervals[index + 1..] {
            if second.start_ns <= first.end_ns && second.machine != first.machine {
                let end = second.end_ns.min(first.end_ns);
                two_owner_ns = two_owner_ns.max(end - second.start_ns).max(1_000);
                let was_owner = intervals[..index].iter().any(|earlier| earlier.machine == second.machine);
                let successor = if was_owner && second.end_ns <= first.end_ns { first } else { second };
                latest_stray_ns = latest_stray_ns.max(end - successor.start_ns);
            }
        }
    }
    let strays: Vec<Word> = words
        .iter()
        .filter(|word| {
            intervals.iter().any(|interval| {
                interval.machine != word.machine && interval.start_ns <= word.t_ns && word.t_ns <= interval.end_ns
            })
        })
        .cloned()
        .collect();
    Speech {
        vip,
        changes: intervals.windows(2).filter(|pair| pair[0].machine != pair[1].machine).count(),
        two_owner_ms: ms(two_owner_ns),
        latest_stray_ms: ms(latest_stray_ns),
        stray_count: strays.len(),
        strays: strays.into_iter().take(20).collect(),
        intervals,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
    const MAIL: u8 = 11;
    const DOUBLE: u8 = 31;

    fn ip(t_ms: u64, host: u8) -> Frame {
        let content = Content::Ip { source: VIP, destination: Ipv4Addr::new(10, 77, 0, 50), protocol: 6 };
        Frame { t_ns: t_ms * 1_000_000, port: 1, source_mac: [0x52, 0x54, 0, 0x77, 0, host], content }
    }

    fn arp(t_ms: u64, host: u8, sender: Ipv4Addr) -> Frame {
        let content = Content::Arp { operation: 1, sender_mac: [0; 6], sender, target: VIP };
        Frame { content, ..ip(t_ms, host) }
    }

    fn steady(from_ms: u64, to_ms: u64, host: u8) -> impl Iterator<Item = Frame> {
        (from_ms..to_ms).step_by(20).map(move |t_ms| ip(t_ms, host))
    }

    #[test]
    fn takeover_and_return_are_no_double_ownership() {
        let frames: Vec<Frame> =
            steady(0, 5_000, MAIL).chain(steady(7_000, 9_000, DOUBLE)).chain(steady(9_100, 12_000, MAIL)).collect();
        let speech = analyse(&frames, VIP);
        let owners: Vec<_> = speech.intervals.iter().map(|interval| interval.machine.as_str()).collect();
        assert_eq!(owners, ["mail", "mailb", "mail"]);
        assert_eq!((speech.changes, speech.stray_count), (2, 0));
        assert!(speech.two_owner_ms.abs() < 1e-9);
    }

    #[test]
    fn a_quick_return_within_the_silence_is_still_seen_as_overlap_free() {
        let frames: Vec<Frame> =
            steady(0, 5_000, MAIL).chain(steady(5_100, 5_500, DOUBLE)).chain(steady(5_600, 9_000, MAIL)).collect();
        // Moves closer together than SILENCE_NS can't be told from two owners: reported, not hidden.
        assert!(analyse(&frames, VIP).two_owner_ms > 0.0);
    }

    #[test]
    fn one_late_frame_counts_since_the_other_began() {
        let frames: Vec<Frame> = steady(0, 5_000, MAIL)
            .chain(steady(7_000, 12_000, DOUBLE))
            .chain([ip(7_513, MAIL)])
            .chain(steady(12_100, 13_000, MAIL))
            .collect();
        let speech = analyse(&frames, VIP);
        assert!((speech.two_owner_ms - 0.001).abs() < 1e-9, "{speech:?}");
        assert!((speech.latest_stray_ms - 513.0).abs() < 1e-9, "{speech:?}");
        assert_eq!(speech.stray_count, 1);
        assert_eq!(speech.strays[0].machine, "mail");
    }

    #[test]
    fn overlap_at_the_hand_over_is_measured() {
        let frames: Vec<Frame> = steady(0, 5_000, MAIL).chain(steady(4_900, 9_000, DOUBLE)).collect();
        assert!((analyse(&frames, VIP).two_owner_ms - 80.0).abs() < 1e-9);
    }

    #[test]
    fn probes_and_questions_of_clients_are_no_speech() {
        let mut frames: Vec<Frame> = steady(0, 1_000, MAIL).collect();
        frames.push(arp(500, DOUBLE, Ipv4Addr::UNSPECIFIED));
        frames.push(arp(510, 50, Ipv4Addr::new(10, 77, 0, 50)));
        let speech = analyse(&frames, VIP);
        assert_eq!((speech.intervals.len(), speech.stray_count), (1, 0));
        frames.push(arp(520, DOUBLE, VIP));
        let speech = analyse(&frames, VIP);
        assert_eq!(speech.strays.iter().filter(|word| word.kind == "arp announcement").count(), 1);
    }
}
