//! Pings through a network that loses packets: a namespace of its own whose kernel drops at random. Needs root.

use kage_agent::host::ping::{Pinger, Series};
use std::{
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// As the profile `normal` asks: five requests within 300 ms, one answer is enough.
const CHECK: Series = Series { count: 5, interval: ms(50), timeout: ms(300), enough: Some(1), deadline: Some(ms(300)) };
const ONE: Series = Series { count: 1, interval: ms(1), timeout: ms(30), enough: Some(1), deadline: Some(ms(30)) };

/// Drops so many of a hundred echo requests and as many of the answers.
fn lose(percent: u32) {
    let rule = if percent == 100 { "drop".to_owned() } else { format!("numgen random mod 100 < {percent} drop") };
    let rules = format!(
        "flush ruleset\ntable ip lossy {{\nchain in {{\ntype filter hook input priority 0;\n\
         icmp type echo-request {rule}\nicmp type echo-reply {rule}\n}}\n}}"
    );
    let done = Command::new("nft").arg(&rules).output().expect("nft");
    assert!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
}

async fn bad(rounds: u32, series: Series) -> u32 {
    let target = IpAddr::from([127, 0, 0, 1]);
    let mut bad = 0;
    for _ in 0..rounds {
        let report = Pinger::new().ping(target, series).await.expect("ping");
        bad += u32::from(report.received() == 0);
    }
    bad
}

#[test]
fn loss_at_random_is_no_trouble() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    // The thread that unshares is the one that runs everything.
    let flags = rustix::thread::UnshareFlags::NEWNET;
    // SAFETY: NEWNET changes nothing that other threads of this process share with this one in memory.
    unsafe { rustix::thread::unshare_unsafe(flags) }.expect("unshare");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip");
    assert!(up.success());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        lose(5);
        assert_eq!(bad(300, CHECK).await, 0, "at 5 % each way");
        let alone = bad(300, ONE).await;
        println!("of 300 single requests {alone} got no answer");
        assert!(alone > 5, "nothing was dropped, so nothing was shown: {alone}");
        lose(100);
        let begun = Instant::now();
        assert_eq!(bad(1, CHECK).await, 1, "silence is told");
        assert!(begun.elapsed() >= ms(300) && begun.elapsed() < ms(600), "{:?}", begun.elapsed());
    });
}
