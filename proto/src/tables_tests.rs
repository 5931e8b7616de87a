#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn name<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn all() -> Tables {
    let row = |vm: &str, host: &str, vip: &str| OperationRow {
        group: Some(name("mail")),
        vm: name(vm),
        host: name(host),
        home: name("rs2"),
        home_vips: BTreeSet::from([name(vip)]),
    };
    let steps = [
        Step::MoveVip { vip: name("10.0.0.2"), from: name("mail2"), to: name("mail1") },
        Step::Migrate { vm: name("mail1"), from: name("rs2"), to: name("rs1") },
        Step::SuspendVm { vm: name("mail2"), host: name("rs2") },
        Step::SuspendHost { host: name("rs2") },
    ];
    let states = [StepState::Planned, StepState::Begun, StepState::Done, StepState::UndoBegun, StepState::Undone];
    let both = steps.iter().cloned().chain(steps.iter().map(Step::inverse));
    Tables {
        revision: Revision(7),
        operation: BTreeMap::from([(name("mail1"), row("mailb", "rs1", "10.0.0.1"))]),
        suspend: BTreeMap::from([(name("mail2"), OperationRow { group: None, ..row("mail2", "rs2", "fd00::2") })]),
        live_migration: BTreeMap::from([(
            name("mail1"),
            MigrationRow { vm: name("mailb"), original_host: name("rs2") },
        )]),
        displaced: BTreeMap::from([(name("mail1"), name("rs2"))]),
        may_be_on: BTreeMap::from([(name("mail1"), [name("rs1"), name("rs3")].into())]),
        real_servers: BTreeMap::from([
            (name("rs1"), RealServerRow { asleep_since_unix_ms: None, wake_took_ms: Some(0) }),
            (name("rs2"), RealServerRow { asleep_since_unix_ms: Some(3), wake_took_ms: None }),
        ]),
        state: BTreeMap::from([
            (name("mail"), StateRow { condition: Condition::Light, base: Some(name("rs1")) }),
            (name("web"), StateRow { condition: Condition::Moderate, base: None }),
        ]),
        placement: BTreeMap::from([(name("10.0.0.2"), name("mail1"))]),
        claims: [Claim::Host(name("rs1")), Claim::Vm(name("mail1")), Claim::Vip(name("10.0.0.1"))]
            .map(|claim| (claim, ClaimRow { by: "mail1".to_owned(), why: "it is down".to_owned() }))
            .into(),
        transition: Some(TransitionRow {
            id: 9,
            by: "c1".to_owned(),
            plan: "{}".to_owned(),
            steps: both.zip(states.into_iter().cycle()).collect(),
            groups: BTreeMap::from([
                (name("mail"), (Condition::Moderate, Condition::Light)),
                (name("web"), (Condition::Heavy, Condition::Moderate)),
            ]),
        }),
    }
}

#[test]
fn all_that_tables_hold_goes_there_and_back() {
    assert_eq!(Tables::try_from(&proto::Tables::from(&all())), Ok(all()));
    assert_eq!(Tables::try_from(&proto::Tables::default()), Ok(Tables::default()));
}

#[test]
fn what_the_contract_does_not_know_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut proto::Tables)| {
        let mut wire = proto::Tables::from(&all());
        change(&mut wire);
        Tables::try_from(&wire).unwrap_err().field
    };
    assert_eq!(refused(&|t| t.operation[0].vm.clear()), "operation.vm");
    assert_eq!(refused(&|t| t.operation[0].home_vips.push("10.0.0.1".to_owned())), "operation.home_vips");
    assert_eq!(refused(&|t| t.operation.push(t.operation[0].clone())), "operation.place");
    assert_eq!(refused(&|t| t.live_migration[0].original_host = "a b".to_owned()), "live_migration.original_host");
    assert_eq!(refused(&|t| t.real_servers[0].host = t.real_servers[1].host.clone()), "real_servers.host");
    assert_eq!(refused(&|t| t.state[0].condition = 0), "state.condition");
    assert_eq!(refused(&|t| t.placement[0].vip = "127.0.0.1".to_owned()), "placement.vip");
    assert_eq!(refused(&|t| t.claims[0].claim = Some(proto::Claim { what: None })), "claim.what");
    assert_eq!(refused(&|t| t.claims[1] = t.claims[0].clone()), "claims.claim");
    assert_eq!(refused(&|t| t.transition.as_mut().unwrap().steps[0].state = 9), "state");
    assert_eq!(refused(&|t| t.transition.as_mut().unwrap().steps[0].step = None), "transition.steps.step");
    assert_eq!(refused(&|t| t.transition.as_mut().unwrap().groups[0].after = 7), "groups.after");
}
