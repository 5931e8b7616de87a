//! What the peers are told: their configuration files, as an administrator would write them.
//!
//! Sources: keepalived.conf(5) 2.2, corosync.conf(5) and votequorum(5) 3.1, "Pacemaker Explained" 2.1,
//! "Fence Agent API" (ClusterLabs).

use super::variant::Variant;

/// The address that is served.
pub const VIP: &str = "10.77.0.100";
/// `a`, which serves; `b`, which stands by; the client, where the fence device is as well.
pub const ADDRESSES: [&str; 3] = ["10.77.0.11", "10.77.0.12", "10.77.0.50"];

/// Where the fence agent is put: Pacemaker looks for such programs only in /usr/sbin.
pub const FENCE_AGENT: &str = "fence_bench";

/// The script that makes a node a machine of its own: it sees none of the host's state below these paths, and what
/// belongs to the machine is gone when its last process is.
pub const INIT: &str = r#"
set -e
name=$1 sbin=$2
mount --make-rprivate /
for path in /run /dev/shm /var/lib/corosync /var/lib/pacemaker /var/log/corosync /etc/corosync /etc/keepalived; do
    if [ -d $path ]; then mount -t tmpfs -o mode=755 bench $path; fi
done
chmod 1777 /dev/shm
mount -t overlay -o ro,lowerdir=$sbin:/usr/sbin bench /usr/sbin
mkdir -p /run/www /run/lock
for path in cib pengine blackbox cores; do mkdir -p /var/lib/pacemaker/$path; done
chown -R hacluster:haclient /var/lib/pacemaker 2> /dev/null || true
echo $name > /run/www/index.html
hostname $name
touch /run/ready
while :; do sleep infinity; done
"#;

/// Starts the service, as the machine's service manager would.
pub const SERVICE: &str = "echo $$ > /run/web.pid; exec /bin/busybox httpd -f -p 80 -h /run/www";

/// Kills it, whoever started it.
pub const KILL_SERVICE: &str = "kill -9 $(cat /run/web.pid)";

/// Takes the address: what every manager does in the end.
#[must_use]
pub fn take_by_hand() -> String {
    format!("ip address add {VIP}/32 dev eth0; busybox arping -U -c 1 -w 1 -I eth0 {VIP} || true")
}

/// The script that runs on node `a` or `b` for as long as it lives, and whether the service is started beside it.
#[must_use]
pub fn manager(variant: Variant, name: &str) -> (Option<String>, bool) {
    let tuned = CorosyncTimes { token: "token: 500\nconsensus: 600\n", monitor: "1s", fence: false };
    match variant {
        Variant::KeepalivedDefault => (Some(keepalived(name, "")), true),
        Variant::KeepalivedTuned => (Some(keepalived(name, "advert_int 0.1")), true),
        Variant::PacemakerDefault => {
            let times = CorosyncTimes { token: "", monitor: "10s", fence: false };
            (Some(pacemaker(&times)), false)
        }
        Variant::PacemakerTuned => (Some(pacemaker(&tuned)), false),
        Variant::PacemakerFenced => (Some(pacemaker(&CorosyncTimes { fence: true, ..tuned })), false),
        Variant::HandVip | Variant::HandVm | Variant::KagemushaNormal | Variant::KagemushaFast => (None, true),
    }
}

fn keepalived(name: &str, advert: &str) -> String {
    let (state, priority) = if name == "a" { ("MASTER", 150) } else { ("BACKUP", 100) };
    format!(
        r#"cat > /run/check <<'END'
#!/bin/bash
exec 3<> /dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && read -r -t 1 line <&3 && [[ $line == *\ 200* ]]
END
chmod 755 /run/check
cat > /etc/keepalived/keepalived.conf <<'END'
global_defs {{
    router_id {name}
    script_user root
    enable_script_security
    vrrp_version 3
}}
vrrp_script web {{
    script /run/check
}}
vrrp_instance service {{
    state {state}
    interface eth0
    virtual_router_id 51
    priority {priority}
    {advert}
    virtual_ipaddress {{
        {VIP}/32 dev eth0
    }}
    track_script {{
        web
    }}
}}
END
exec keepalived --dont-fork --log-console --log-detail
"#
    )
}

struct CorosyncTimes {
    token: &'static str,
    monitor: &'static str,
    fence: bool,
}

fn pacemaker(times: &CorosyncTimes) -> String {
    let [a, b, _] = ADDRESSES;
    let CorosyncTimes { token, monitor, fence } = times;
    let device = if *fence {
        format!(
            r#"<primitive id="power" class="stonith" type="{FENCE_AGENT}">
                <instance_attributes id="power-i">
                    <nvpair id="power-hosts" name="pcmk_host_list" value="a b"/>
                    <nvpair id="power-check" name="pcmk_host_check" value="static-list"/>
                </instance_attributes>
            </primitive>"#
        )
    } else {
        String::new()
    };
    let keeper = if *fence { r#"<rsc_location id="keeper" rsc="power" node="b" score="100"/>"# } else { "" };
    format!(
        r#"cat > /etc/corosync/corosync.conf <<'END'
totem {{
version: 2
cluster_name: bench
crypto_cipher: none
crypto_hash: none
{token}}}
logging {{
to_stderr: yes
to_syslog: no
timestamp: hires
}}
quorum {{
provider: corosync_votequorum
two_node: 1
}}
nodelist {{
node {{
name: a
nodeid: 1
ring0_addr: {a}
}}
node {{
name: b
nodeid: 2
ring0_addr: {b}
}}
}}
END
cat > /var/lib/pacemaker/cib/cib.xml <<'END'
<cib validate-with="pacemaker-3.7" admin_epoch="1" epoch="1" num_updates="0">
 <configuration>
  <crm_config><cluster_property_set id="cib-bootstrap-options">
    <nvpair id="fencing" name="stonith-enabled" value="{fence}"/>
    <nvpair id="start" name="dc-deadtime" value="2s"/>
  </cluster_property_set></crm_config>
  <nodes><node id="1" uname="a"/><node id="2" uname="b"/></nodes>
  <resources>
   {device}
   <group id="service">
    <primitive id="vip" class="ocf" provider="heartbeat" type="IPaddr2">
     <instance_attributes id="vip-i">
      <nvpair id="vip-ip" name="ip" value="{VIP}"/>
      <nvpair id="vip-mask" name="cidr_netmask" value="32"/>
      <nvpair id="vip-nic" name="nic" value="eth0"/>
     </instance_attributes>
     <operations><op id="vip-monitor" name="monitor" interval="{monitor}"/></operations>
    </primitive>
    <primitive id="web" class="ocf" provider="heartbeat" type="anything">
     <instance_attributes id="web-i">
      <nvpair id="web-binary" name="binfile" value="/bin/busybox"/>
      <nvpair id="web-options" name="cmdline_options" value="httpd -f -p 80 -h /run/www"/>
      <nvpair id="web-pid" name="pidfile" value="/run/web.pid"/>
     </instance_attributes>
     <operations><op id="web-monitor" name="monitor" interval="{monitor}"/></operations>
    </primitive>
   </group>
  </resources>
  <constraints><rsc_location id="home" rsc="service" node="a" score="100"/>{keeper}</constraints>
 </configuration>
 <status/>
</cib>
END
chown hacluster:haclient /var/lib/pacemaker/cib/cib.xml
chmod 600 /var/lib/pacemaker/cib/cib.xml
export PCMK_logfile=/run/pacemaker.log
setsid -f corosync -f < /dev/null
until corosync-cmapctl totem.cluster_name > /dev/null 2>&1; do sleep 0.1; done
exec pacemakerd
"#
    )
}

/// The fence agent: a power switch in the network, which a machine that is cut off can't reach. `group` is the control
/// group of a node without its last letter.
#[must_use]
pub fn fence_agent(group: &str) -> String {
    let [_, _, device] = ADDRESSES;
    format!(
        r#"#!/bin/sh
# A power switch for two machines: kills every process of one.
action= port=
while read -r line; do
    case $line in
        action=*) action=${{line#*=}} ;;
        port=* | plug=* | nodename=*) port=${{line#*=}} ;;
    esac
done
[ -n "$action" ] || action=$(echo "$*" | sed -n 's/.*-o *//p')
case $action in
    metadata)
        cat <<'END'
<?xml version="1.0" ?>
<resource-agent name="{FENCE_AGENT}" shortdesc="Simulated power switch">
<longdesc>Simulated power switch</longdesc>
<parameters>
<parameter name="action" unique="0" required="1"><getopt mixed="-o, --action=[action]"/><content type="string" default="reboot"/></parameter>
<parameter name="port" unique="0" required="0"><getopt mixed="-n, --plug=[id]"/><content type="string"/></parameter>
</parameters>
<actions>
<action name="on" automatic="0"/>
<action name="off"/>
<action name="reboot"/>
<action name="status"/>
<action name="monitor"/>
<action name="metadata"/>
</actions>
</resource-agent>
END
        ;;
    off | reboot)
        ping -q -c 1 -W 1 {device} > /dev/null || exit 1
        echo 1 > {group}$port/cgroup.kill
        while [ -n "$(cat {group}$port/cgroup.procs)" ]; do sleep 0.01; done
        ;;
    *) ping -q -c 1 -W 1 {device} > /dev/null ;;
esac
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_has_a_script_and_the_floor_has_none() {
        for variant in Variant::ALL {
            let (script, service) = manager(variant, "a");
            let by_hand = matches!(variant, Variant::HandVip | Variant::HandVm);
            if variant.on_namespaces() {
                assert_eq!(script.is_none(), by_hand, "{variant:?}");
            }
            // Pacemaker starts the service itself.
            assert_eq!(service, !script.unwrap_or_default().contains("pacemakerd"), "{variant:?}");
        }
    }

    #[test]
    fn tuning_shows_in_the_files() {
        let script = |variant| manager(variant, "b").0.unwrap_or_default();
        assert!(script(Variant::KeepalivedTuned).contains("advert_int 0.1"));
        assert!(!script(Variant::KeepalivedDefault).contains("advert_int"));
        assert!(!script(Variant::PacemakerDefault).contains("token"));
        assert!(script(Variant::PacemakerTuned).contains("token: 500"));
        assert!(script(Variant::PacemakerFenced).contains("name=\"stonith-enabled\" value=\"true\""));
        assert!(script(Variant::PacemakerTuned).contains("name=\"stonith-enabled\" value=\"false\""));
    }
}
