//! A fleet as one of two clusters under a root: what it states, what it has heard of the other, and what its operator plugs in.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    super::{
        Anchor, Class, Kind, Observations, Observed, Party, Phase, Role, Rotation, Standing,
        clusters::{Progress, Statement, Us, report},
    },
    fleet::{Fleet, limits},
};

pub(super) struct Neighbour {
    /// Its own name, and the other's.
    names: [&'static str; 2],
    /// Whether its roots are kept offline: a person brings the next one, and plugs in an intermediate under it.
    pub(super) offline: bool,
    // The files.
    plugged: Option<Anchor>,
    /// The roots under which it has an intermediate with its key.
    pub(super) held: BTreeSet<Anchor>,
    // The store.
    epoch: u64,
    heard: Option<Statement>,
    /// What it states, and since when; gone with the process.
    states: Option<(u64, Statement)>,
}

impl Neighbour {
    pub(super) fn new(names: [&'static str; 2], offline: bool) -> Self {
        let a = Some(Anchor::new("A")).filter(|_| offline);
        let held = a.iter().cloned().collect();
        Self { names, offline, plugged: a, held, epoch: 1_000_000, heard: None, states: None }
    }

    /// The process ends; what lies in the store and in files stays.
    pub(super) fn ends(&mut self) {
        self.states = None;
    }

    /// The other cluster, as a rotation knows it.
    pub(super) fn party(&self, rotation: &Rotation, sequence: u64) -> Party {
        let us = Us { cluster: self.names[0], epoch: self.epoch };
        let report = self.heard.as_ref().map(|heard| report(heard, rotation, sequence, us));
        let class = Class::Observed(Observed { role: Role::Cluster, silent: Duration::ZERO, report });
        Party { name: self.names[1].into(), class }
    }
}

impl Fleet {
    fn beside_it(&mut self) -> &mut Neighbour {
        self.neighbour.as_mut().unwrap()
    }

    // What it says and hears.

    /// States how far it is, where there is anybody to tell.
    pub(super) fn state(&mut self, under_way: Option<(&Rotation, &Observations)>) {
        let (clock, record, signing) = (self.clock(), self.record.clone(), self.trust.signing.clone());
        let now = self.now;
        let Some(neighbour) = &mut self.neighbour else { return };
        let (step, progress) = match under_way {
            Some((rotation, seen)) => (rotation.step, Progress::seen(rotation, seen, &limits())),
            None => (record.step, Progress::over(&record)),
        };
        let last = neighbour.states.as_ref();
        let heard: BTreeMap<_, _> =
            neighbour.heard.iter().map(|heard| (heard.cluster.clone(), heard.place())).collect();
        let says_so =
            |last: &Statement| last.step == step && last.rotation.as_ref() == Some(&progress) && last.heard == heard;
        if last.is_some_and(|(at, last)| says_so(last) && now < at + AGAIN) {
            return;
        }
        let statement = Statement {
            trust_domain: "td".into(),
            cluster: neighbour.names[0].into(),
            made: Statement::next_made(last.map(|(_, last)| last.made), clock),
            epoch: neighbour.epoch,
            step,
            signing,
            rotation: Some(progress),
            heard,
        };
        neighbour.states = Some((now, statement));
    }

    pub(super) fn stated(&self) -> Option<Statement> {
        self.neighbour.as_ref()?.states.as_ref().map(|(_, statement)| statement.clone())
    }

    pub(super) fn hear(&mut self, statement: &Statement) {
        let now = self.clock();
        let neighbour = self.beside_it();
        let news = neighbour.heard.as_ref().is_none_or(|held| statement.replaces(held, now));
        if news && !statement.is_of_the_future(now) {
            neighbour.heard = Some(statement.clone());
        }
    }

    // What its operator does.

    /// Whether a rotation to this root can begin: where its key is here it is made, elsewhere a person has it.
    pub(super) fn begin(&mut self, brings: &str) {
        assert!(self.record.is_over());
        self.begin_another(brings);
        if self.beside_it().offline {
            let given = Some(Anchor::new(brings));
            let rotation =
                Rotation::new(Kind::Root, self.trust.signing.clone(), given, self.record.begun - 1, self.clock());
            self.record = rotation.bringing(brings.into());
        }
    }

    pub(super) fn has(&self, root: &str) -> bool {
        self.known().contains(&Anchor::new(root))
    }

    pub(super) fn asks_for_an_intermediate(&self) -> bool {
        self.waiting().iter().any(|wait| wait.standing == Standing::Person)
    }

    pub(super) fn plug_in(&mut self, root: &str) {
        self.beside_it().plugged = Some(Anchor::new(root));
    }

    /// Whether what a person must not leave there on the way back lies there.
    pub(super) fn is_plugged_under_what_is_left(&self) -> bool {
        let plugged = self.neighbour.as_ref().and_then(|neighbour| neighbour.plugged.as_ref());
        let back = self.record.back && Some(self.record.signing()) == self.record.to();
        back && plugged.is_some() && plugged == self.record.from()
    }

    /// What is plugged in signs as soon as it may.
    pub(super) fn look_at_what_is_plugged_in(&mut self) {
        let Some(plugged) = self.neighbour.as_ref().and_then(|neighbour| neighbour.plugged.clone()) else { return };
        if plugged == self.trust.signing || !self.trust.trusted.contains(&plugged) || !self.happens(300) {
            return;
        }
        let waits = match self.record.holds_back(&plugged) {
            true => self.record.awaited_before_signing(&plugged, &self.observe(), &limits()),
            false => Vec::new(),
        };
        if waits.is_empty() {
            self.beside_it().held.insert(plugged.clone());
            self.trust.signing = plugged;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase() == Phase::Done
    }
}

/// So often it is stated, though it says the same.
const AGAIN: u64 = 60;
