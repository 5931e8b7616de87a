//! A peer of the last release is understood, and understands us: nothing that it knows has gone, moved or changed.
//!
//! `proto/baseline.txt` is the contract as of the last release, a line for each field, value and RPC. What was added since
//! is free to change until the next; `KAGE_BLESS=1 cargo test -p kage-proto --test it compatible` writes it anew then.

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/baseline.txt");

fn contract(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in &set.file {
        let package = file.package();
        file.message_type.iter().for_each(|message| message_lines(package, message, &mut lines));
        file.enum_type.iter().for_each(|values| enum_lines(package, values, &mut lines));
        for service in &file.service {
            for method in &service.method {
                let stream = |is: bool| if is { "stream " } else { "" };
                lines.insert(format!(
                    "rpc {package}.{}/{} ({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                ));
            }
        }
    }
    lines
}

fn message_lines(scope: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let mut line = format!("field {name} {} {} ", field.number(), field.name());
        let kind = if let Type::Message | Type::Enum | Type::Group = field.r#type() {
            field.type_name().to_owned()
        } else {
            field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase()
        };
        let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
        let _ = write!(line, "{repeated}{kind}");
        // In and out of a oneof is the same on the wire and not in what is understood. A field that may be absent is a
        // oneof of its own.
        if let Some(index) = field.oneof_index {
            let oneof = message.oneof_decl[usize::try_from(index).expect("index")].name();
            let _ = if field.proto3_optional() { write!(line, " optional") } else { write!(line, " oneof {oneof}") };
        }
        lines.insert(line);
    }
    message.nested_type.iter().for_each(|nested| message_lines(&name, nested, lines));
    message.enum_type.iter().for_each(|values| enum_lines(&name, values, lines));
}

fn enum_lines(scope: &str, values: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &values.value {
        lines.insert(format!("value {scope}.{} {} {}", values.name(), value.number(), value.name()));
    }
}

fn broken<'a>(baseline: &'a BTreeSet<String>, now: &'a BTreeSet<String>) -> Vec<&'a str> {
    baseline.difference(now).map(String::as_str).collect()
}

#[test]
fn a_peer_of_the_last_release_is_understood() {
    let set = FileDescriptorSet::decode(kage_proto::DESCRIPTORS).expect("descriptors");
    let now = contract(&set);
    if std::env::var_os("KAGE_BLESS").is_some() {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        fs::write(Path::new(BASELINE), text).expect("write");
    }
    let text = fs::read_to_string(BASELINE).expect("proto/baseline.txt");
    let baseline: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    assert!(baseline.len() > 300, "{} lines", baseline.len());
    let broken = broken(&baseline, &now);
    assert!(
        broken.is_empty(),
        "peers of the last release would misunderstand or miss these; leave them and add others with new numbers:\n{}",
        broken.join("\n")
    );
}

#[test]
fn what_breaks_a_peer_is_noticed() {
    let good = FileDescriptorSet::decode(kage_proto::DESCRIPTORS).expect("descriptors");
    let baseline = contract(&good);
    let change = |what: &dyn Fn(&mut FileDescriptorSet)| {
        let mut set = good.clone();
        what(&mut set);
        broken(&baseline, &contract(&set)).len()
    };
    let at = good.file.iter().position(|file| file.package() == "kagemusha.sif.v1").expect("sif");
    let row = good.file[at].message_type.iter().position(|message| message.name() == "VipRow").expect("row");
    assert_eq!(change(&|_| {}), 0);
    assert_eq!(change(&|set| drop(set.file[at].message_type[row].field.pop())), 1, "removed");
    assert_eq!(change(&|set| set.file[at].message_type[row].field[1].number = Some(99)), 1, "renumbered");
    assert_eq!(change(&|set| set.file[at].message_type[row].field[1].set_type(Type::String)), 1, "retyped");
    assert_eq!(change(&|set| set.file[at].message_type[row].field[1].name = Some("age".into())), 1, "renamed");
    assert_eq!(change(&|set| drop(set.file[at].service[0].method.remove(0))), 1, "an RPC removed");
    assert_eq!(change(&|set| set.file[at].service[0].method[0].server_streaming = Some(true)), 1, "made a stream");
    let added = |set: &mut FileDescriptorSet| {
        let mut field = set.file[at].message_type[row].field[0].clone();
        (field.number, field.name) = (Some(99), Some("new".into()));
        set.file[at].message_type[row].field.push(field);
    };
    assert_eq!(change(&added), 0, "added");
}
