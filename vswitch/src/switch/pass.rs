//! Passing a running bridge on to another daemon, and going on with one.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost_net_backend::session::{Handover, SessionState};

use super::{Control, Link, Switch, SwitchError};
use crate::clock::Clock;
use crate::config::BridgeConfig;
use crate::handover::{FORMAT, FdbCounts, LearnedState, LinkState, SwitchState};
use crate::port::Port;
use crate::run_dir::BridgeDir;

/// What a port was connected by before.
#[derive(Debug)]
pub(super) struct Before {
    session: Option<SessionState>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Before {
    pub(super) fn session(self) -> Option<Handover> {
        let fds = self.fds;
        self.session.map(|state| Handover { state, fds })
    }
}

impl Switch {
    /// Goes on with a bridge that another daemon passed on.
    pub fn take_over(
        name: &str,
        state: SwitchState,
        fds: Vec<OwnedFd>,
        dir: Option<BridgeDir>,
    ) -> Result<Self, SwitchError> {
        let clock = Clock::starting_at(state.clock);
        let switch = Self::empty(name, state.config.settings.clone(), clock, dir)?;
        switch.go_on(&mut switch.control(), state, fds);
        Ok(switch)
    }

    /// Stops every port and has `pass` pass the bridge on. If that fails, the bridge goes on here. No other change is
    /// made meanwhile.
    pub fn hand_over<T, E>(
        &self,
        pass: impl FnOnce(&SwitchState, &[OwnedFd]) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut control = self.control();
        let (state, fds) = self.stop_all(&mut control);
        let passed = pass(&state, &fds);
        if passed.is_err() {
            self.go_on(&mut control, state, fds);
        }
        passed
    }

    fn stop_all(&self, control: &mut Control) -> (SwitchState, Vec<OwnedFd>) {
        let clock = self.bridge.clock().now();
        let mut state = SwitchState {
            format: FORMAT,
            clock,
            config: control.config.clone(),
            links: Vec::new(),
            fdb: self.learned(&control.config, clock),
            counts: Vec::new(),
            fdb_counts: FdbCounts::default(),
        };
        // First nothing comes in any more, so that no frame finds its receiver gone.
        for port in self.bridge.ports().iter() {
            for pair in port.pairs() {
                if let Some(ring) = pair.ingress.ring.lock().as_mut() {
                    ring.state.broken = true;
                }
            }
        }
        let ports = self.bridge.ports();
        let (taps, others): (Vec<_>, Vec<_>) = ports.iter().partition(|port| port.is_tap());
        let mut fds = Vec::new();
        // The host's interfaces next, while those that they send to are still there.
        for port in taps {
            self.stop_port(control, port, &mut state, &mut fds);
        }
        for link in control.links.values() {
            if let Link::Session(session) = link {
                session.begin_hand_over();
            }
        }
        for port in others {
            self.stop_port(control, port, &mut state, &mut fds);
        }
        // Nobody counts any more.
        let named = |name: &str| ports.iter().find(|port| port.settings().name == name);
        let counts = state.config.ports.iter().map(|settings| named(&settings.name));
        state.counts = counts
            .map(|port| port.map(|port| port.counts()).unwrap_or_default())
            .collect();
        state.fdb_counts = FdbCounts::of(self.bridge.fdb().counters());
        control.config = BridgeConfig {
            settings: control.config.settings.clone(),
            ..BridgeConfig::default()
        };
        (state, fds)
    }

    /// Stops one port; what it was connected by goes to the state.
    fn stop_port(
        &self,
        control: &mut Control,
        port: &Arc<Port>,
        state: &mut SwitchState,
        fds: &mut Vec<OwnedFd>,
    ) {
        let name = port.settings().name.clone();
        let before = match control.links.remove(&port.id()) {
            Some(Link::Session(session)) => session.hand_over().map(|handover| Before {
                session: Some(handover.state),
                fds: handover.fds,
            }),
            Some(Link::Tap(tap)) => tap
                .hand_over()
                .inspect_err(|error| tracing::warn!(port = name, "not handed over: {error}"))
                .map(|fds| Before { session: None, fds })
                .ok(),
            None => None,
        };
        self.workers.remove(port);
        self.bridge.remove_port(port);
        if let Some(before) = before {
            state.links.push(LinkState {
                port: name,
                session: before.session,
                fds: before.fds.len(),
            });
            fds.extend(before.fds);
        }
    }

    fn learned(&self, config: &BridgeConfig, now: u32) -> Vec<LearnedState> {
        let entries = self.bridge.fdb().entries(now).into_iter();
        let entries = entries.filter(|entry| !entry.is_static).filter_map(|entry| {
            let port = self.bridge.port(entry.port)?;
            let name = &port.settings().name;
            Some(LearnedState {
                mac: entry.mac,
                vlan: entry.vlan,
                port: config.ports.iter().position(|port| port.name == *name)?,
                seen: now.saturating_sub(entry.age),
            })
        });
        entries.collect()
    }

    /// Goes on with ports and addresses. A port that cannot go on begins anew, as after the end of a daemon.
    fn go_on(&self, control: &mut Control, state: SwitchState, fds: Vec<OwnedFd>) {
        // A frame must find all ports and addresses again, not only those that were faster.
        let _hold = self.workers.hold();
        let mut fds = fds.into_iter();
        let mut before: HashMap<String, Before> = HashMap::new();
        for link in state.links {
            let fds = fds.by_ref().take(link.fds).collect();
            let session = link.session;
            before.insert(link.port, Before { session, fds });
        }
        let mut ids = Vec::new();
        let mut counts = state.counts.iter();
        for settings in state.config.ports {
            let counts = counts.next();
            let name = settings.name.clone();
            let link = before.remove(&name);
            let again = link.is_some().then(|| settings.clone());
            let mut attached = self.attach(control, settings, link);
            if let (Err(error), Some(again)) = (&attached, again) {
                tracing::warn!(port = name, "begins anew: {error}");
                attached = self.attach(control, again, None);
            }
            if let Err(error) = &attached {
                tracing::warn!(port = name, "port left out: {error}");
            }
            if let (Ok(port), Some(counts)) = (&attached, counts) {
                port.set_counts(counts);
            }
            ids.push(attached.map(|port| port.id()).ok());
        }
        self.set_statics(control, state.config.fdb);
        for entry in state.fdb {
            if let Some(Some(port)) = ids.get(entry.port) {
                self.bridge.fdb().learn(entry.mac, entry.vlan, *port, entry.seen);
            }
        }
        state.fdb_counts.go_on(self.bridge.fdb().counters());
    }
}
