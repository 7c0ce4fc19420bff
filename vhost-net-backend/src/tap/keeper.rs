//! Following a tap: whether it is there, and whether its link is up.
//!
//! The kernel announces every change of an interface (rtnetlink, `RTNLGRP_LINK`); nothing here polls. Announcements are
//! taken as a hint to look, so that none of them can be misread, overtaken or lost for good.
//!
//! ```text
//!               deleted                                 an interface of the name appears
//!   attached ─────────────► away, link down, waiting ──────────────────────────────────► attached again, set up
//! ```

use std::sync::Arc;
use std::thread::JoinHandle;

use futures_util::StreamExt;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::Notify;

use super::{Tap, TapError, TapQueue};
use crate::netlink::{self, NetlinkError};

/// Follows a tap on a thread of its own, until it is dropped.
#[derive(Debug)]
pub struct TapKeeper {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl TapKeeper {
    /// Follow `tap`. `changed` is told when its link goes up or down: what it is at first, and that it went down when
    /// another interface took its place. One that returns is set up with this MTU.
    pub fn start(
        tap: &Tap,
        mtu: Option<u16>,
        changed: impl Fn(bool) + Send + 'static,
    ) -> Result<Self, NetlinkError> {
        let name = tap.name().to_owned();
        let open = |error| NetlinkError::Open {
            name: tap.name().to_owned(),
            error,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(open)?;
        let first = {
            let _context = runtime.enter();
            Events::open().map_err(open)?
        };
        let kept = Kept {
            name,
            mtu,
            queues: tap.queues().to_vec(),
            changed,
            link: None,
            refused: String::new(),
        };
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("netlink".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = stopped.notified() => {}
                        () = kept.follow(first) => {}
                    }
                });
            })
            .map_err(open)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for TapKeeper {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The kernel's announcements, and a way to ask back.
struct Events {
    handle: Handle,
    messages: Box<dyn futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send + Unpin>,
}

impl Events {
    fn open() -> std::io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            messages: Box::new(messages.map(|(message, _)| message)),
        })
    }
}

struct Kept<F> {
    name: String,
    mtu: Option<u16>,
    queues: Vec<Arc<TapQueue>>,
    changed: F,
    /// As it was last told.
    link: Option<bool>,
    /// Why the interface that is there cannot be attached to, as it was last logged.
    refused: String,
}

impl<F: Fn(bool)> Kept<F> {
    async fn follow(mut self, mut events: Events) {
        loop {
            self.look(&events.handle).await;
            // A connection ends when announcements came faster than they were taken: a new one begins with a look.
            let concerned = loop {
                match events.messages.next().await {
                    Some(message) if self.concerns(&message) => break true,
                    Some(_) => {}
                    None => break false,
                }
            };
            if !concerned {
                match Events::open() {
                    Ok(new) => events = new,
                    Err(error) => {
                        tracing::error!(tap = self.name, "not followed any more: {error}");
                        return;
                    }
                }
            }
        }
    }

    fn concerns(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) => is_named(link, &self.name),
            _ => true,
        }
    }

    fn tell(&mut self, up: bool) {
        if self.link.replace(up) != Some(up) {
            tracing::info!(tap = self.name, "link {}", if up { "up" } else { "down" });
            (self.changed)(up);
        }
    }

    async fn look(&mut self, handle: &Handle) {
        let there = self.is_up(handle).await;
        if self.queues.first().is_some_and(|queue| queue.is_attached()) {
            // One that has another name now, or is in another namespace, is taken to be as it was.
            self.tell(there.or(self.link).unwrap_or(true));
            return;
        }
        self.tell(false);
        if there.is_none() {
            return;
        }
        match self.attach(handle).await {
            Ok(()) => {
                tracing::info!(tap = self.name, "attached again");
                self.refused.clear();
                let up = self.is_up(handle).await;
                self.tell(up.unwrap_or(false));
            }
            Err(error) => {
                let text = error.to_string();
                if text != self.refused {
                    tracing::warn!(tap = self.name, "not attached again: {text}");
                    self.refused = text;
                }
            }
        }
    }

    /// Whether the link of the interface is up; `None` when there is no such interface.
    async fn is_up(&self, handle: &Handle) -> Option<bool> {
        let request = handle.link().get().match_name(self.name.clone()).execute();
        let link = std::pin::pin!(request).next().await?.ok()?;
        Some(link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp))
    }

    async fn attach(&self, handle: &Handle) -> Result<(), TapError> {
        let many = self.queues.len() > 1;
        self.queues
            .iter()
            .try_for_each(|queue| queue.attach_again(&self.name, many))?;
        if let Err(error) = netlink::bring_up(handle, &self.name, self.mtu).await {
            tracing::warn!("{error}");
        }
        Ok(())
    }
}

fn is_named(link: &LinkMessage, name: &str) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(is) if is == name))
}
