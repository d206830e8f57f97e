//! What was released stays readable: the definitions may grow, and nothing in them may change its meaning.
//!
//! `proto/tests/released/events.v1.binpb` is the `FileDescriptorSet` of the last release. `UPDATE_RELEASED=1 cargo test -p
//! arbees-proto --test released` replaces it, which belongs into a release and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

fn released_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/released/events.v1.binpb")
}

fn current() -> FileDescriptorSet {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut set = protox::compile(["arbees/events/v1/events.proto"], [root]).unwrap();
    // Comments and positions are no part of the contract.
    set.file.iter_mut().for_each(|f| f.source_code_info = None);
    set
}

fn messages(set: &FileDescriptorSet) -> BTreeMap<String, &DescriptorProto> {
    let of_file = |f: &'_ prost_types::FileDescriptorProto| f.package().to_owned();
    set.file
        .iter()
        .flat_map(|f| f.message_type.iter().map(move |m| (format!("{}.{}", of_file(f), m.name()), m)))
        .collect()
}

/// What must never change of a field: how it is read, by whom it is found in JSON, and whether it excludes others.
fn shape(field: &FieldDescriptorProto) -> (&str, i32, i32, &str, Option<i32>, bool) {
    (
        field.name(),
        field.r#type.unwrap_or(0),
        field.label.unwrap_or(0),
        field.type_name(),
        field.oneof_index,
        field.proto3_optional(),
    )
}

/// Every change that would make an old reader or an old event misunderstood.
fn breaks(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let mut found = Vec::new();
    let new = messages(new);
    for (name, old) in messages(old) {
        let Some(new) = new.get(&name) else {
            found.push(format!("{name} is gone"));
            continue;
        };
        let is_reserved = |n: i32| new.reserved_range.iter().any(|r| r.start() <= n && n < r.end());
        let names: BTreeSet<&str> = new.reserved_name.iter().map(String::as_str).collect();
        for field in &old.field {
            match new.field.iter().find(|f| f.number() == field.number()) {
                Some(same) if shape(same) == shape(field) => {}
                Some(other) => {
                    found.push(format!("{name}.{}: was {:?}, is {:?}", field.number(), shape(field), shape(other)));
                }
                None if is_reserved(field.number()) && names.contains(field.name()) => {}
                None => found.push(format!("{name}.{} is gone and not reserved", field.name())),
            }
        }
    }
    found
}

#[test]
fn nothing_released_has_changed() {
    let new = current();
    if std::env::var_os("UPDATE_RELEASED").is_some() {
        std::fs::write(released_path(), new.encode_to_vec()).unwrap();
    }
    let old = FileDescriptorSet::decode(std::fs::read(released_path()).unwrap().as_slice()).unwrap();
    assert!(messages(&old).len() > 30, "the released set is not the one");
    assert_eq!(breaks(&old, &new), [] as [String; 0]);
}

#[test]
fn each_kind_of_break_is_seen_and_growth_is_none() {
    let old = current();
    let edited = |edit: &dyn Fn(&mut DescriptorProto)| {
        let mut new = current();
        let all = new.file.iter_mut().flat_map(|f| &mut f.message_type);
        edit(all.into_iter().find(|m| m.name() == "Watched").unwrap());
        breaks(&old, &new)
    };
    assert_eq!(edited(&|m| m.field[0].number = Some(9)).len(), 1, "renumbered");
    assert_eq!(edited(&|m| m.field[0].name = Some("id".into())).len(), 1, "renamed");
    assert_eq!(edited(&|m| m.field[1].r#type = Some(5)).len(), 1, "retyped");
    assert_eq!(edited(&|m| drop(m.field.pop())).len(), 1, "removed");
    assert_eq!(edited(&|m| m.name = Some("Seen".into())).len(), 1, "message renamed");
    let grown = edited(&|m| {
        let more = FieldDescriptorProto { number: Some(3), name: Some("more".into()), ..m.field[0].clone() };
        m.field.push(more);
    });
    assert_eq!(grown, [] as [String; 0]);
}
