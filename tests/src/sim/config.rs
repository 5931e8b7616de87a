//! The clusters that are simulated: small, in a few shapes.

use super::rng::Rng;
use kage_coordinator_core::config::Cluster;

/// A cluster chosen by chance.
#[must_use]
pub fn cluster(rng: &mut Rng) -> Cluster {
    let profile = if rng.percent(60) { "normal" } else { "fast" };
    // The voters are witnesses, or the double's host votes, or the owner itself does.
    let voters: [bool; 5] = match rng.range(0, 10) {
        0..=6 => [false, false, true, true, true],
        7 | 8 => [false, true, true, true, false],
        _ => [true, true, true, false, false],
    };
    let mut cluster = text(profile, voters, if rng.percent(15) { 2 } else { 1 });
    let readable = rng.percent(30);
    for machine in cluster.agents.values_mut().filter(|_| readable) {
        machine.power_status = Some(vec!["power".to_owned()]);
    }
    cluster
}

/// A cluster of this shape.
///
/// # Panics
/// Never: the text is a good one.
#[must_use]
pub fn text(profile: &str, voters: [bool; 5], vips: usize) -> Cluster {
    let vips = ["10.77.0.100", "10.77.0.101"][..vips].iter().map(|vip| format!("\"{vip}\"")).collect::<Vec<_>>();
    let mut text = format!(
        "[cluster]\nname = \"sim\"\nprofile = \"{profile}\"\n\
         [coordinator]\nlisten = \"10.77.0.3:7700\"\n[sif]\nlisten = \"10.77.0.3:7701\"\n"
    );
    for (index, name) in super::world::NAMES.iter().enumerate() {
        let guard = if index == super::world::MGMT { "tap" } else { "host" };
        text += &format!(
            "[[agent]]\nname = \"{name}\"\naddress = \"10.77.0.{}:7702\"\nmac = \"52:54:00:77:00:{index:02x}\"\n\
             voter = {}\nguard = \"{guard}\"\n",
            11 + index,
            voters[index]
        );
    }
    text += &format!(
        "[[target]]\nname = \"mail\"\nagent = \"mail\"\nvips = [{}]\n\
         backup = {{ agent = \"mgmt\", domain = \"mailb\" }}\nhealthy_for = \"2s\"\nreboot_wait = \"5s\"\nstart_wait = \"10s\"\n\
         budget = {{ restarts = 1000, reboots = 1000, takeovers = 1000 }}\n\
         [[target.service]]\nname = \"http\"\nprobe = \"http\"\nport = 80\n",
        vips.join(", ")
    );
    match Cluster::parse(&text) {
        Ok(cluster) => cluster,
        Err(error) => unreachable!("{error}"),
    }
}
