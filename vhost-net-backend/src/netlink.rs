//! Interfaces of the host through rtnetlink: link state and MTU.

use std::io;

use rtnetlink::{Handle, LinkUnspec};

/// Why an interface could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket, or no runtime to drive it.
    #[error("interface '{name}' not changed: cannot open a netlink socket: {error}")]
    Open {
        /// The interface.
        name: String,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// The kernel refused.
    #[error(
        "interface '{name}' not changed: {error}; run as root, and check that the MTU is one it can have"
    )]
    Refused {
        /// The interface.
        name: String,
        /// What the kernel said.
        #[source]
        error: rtnetlink::Error,
    },
}

/// Set interface `name` up, with this MTU if one is given. Blocks; meant for start-up, not for a data plane.
pub fn set_up(name: &str, mtu: Option<u16>) -> Result<(), NetlinkError> {
    let open = |error| NetlinkError::Open {
        name: name.to_owned(),
        error,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(open)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(open)?;
        let connection = tokio::spawn(connection);
        let result = bring_up(&handle, name, mtu).await;
        connection.abort();
        result
    })
}

/// As [`set_up`], over a connection that is there.
pub(crate) async fn bring_up(handle: &Handle, name: &str, mtu: Option<u16>) -> Result<(), NetlinkError> {
    let mut link = LinkUnspec::new_with_name(name).up();
    if let Some(mtu) = mtu {
        link = link.mtu(u32::from(mtu));
    }
    let result = handle.link().set(link.build()).execute().await;
    result.map_err(|error| NetlinkError::Refused {
        name: name.to_owned(),
        error,
    })
}
