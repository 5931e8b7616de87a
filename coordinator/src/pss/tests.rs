//! What the tests of this directory share.

use kage_coordinator_core::config::Cluster;

/// The thesis's three real servers, as far as this version reads them.
pub fn cluster() -> Cluster {
    let agent = |name: &str, address: &str, more: &str| {
        format!("[[agent]]\nname = \"{name}\"\naddress = \"{address}:7702\"\nguard = \"tap\"\n{more}\n")
    };
    let mut text = String::from(
        "[cluster]\nname = \"lab\"\non_coordinator_loss = \"keep\"\n[coordinator]\nlisten = \"10.77.0.2:7700\"\n\
         [sif]\nlisten = \"10.77.0.2:7701\"\n",
    );
    text += &agent("mgmt", "10.77.0.2", "");
    for number in 1..=3 {
        text += &agent(
            &format!("rs{number}"),
            &format!("10.77.0.1{number}"),
            &format!("mac = \"52:54:00:77:00:1{number}\""),
        );
        text += &format!("[[host]]\nagent = \"rs{number}\"\n");
    }
    for (name, host, last) in [("mail1", "rs1", 101), ("mail2", "rs2", 104)] {
        text += &target(name, host, last);
    }
    text += "[[group]]\nname = \"mail\"\nmembers = [\"mail1\", \"mail2\"]\n";
    Cluster::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn target(name: &str, host: &str, last: u8) -> String {
    format!(
        "[[target]]\nname = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{host}\" }}\naddress = \"10.77.1.{last}\"\nvips = [\"10.77.0.{last}\"]\n\
         backup = {{ agent = \"mgmt\", domain = \"mailb\" }}\n"
    )
}
