//! A machine as seen through its API.

use super::images::{await_button, bzimage, halt, power_off, print};
use super::*;
use crate::api::{ApiError, serve};
use crate::client::{Client, ClientError};
use crate::vfio::Source;

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

#[test]
fn commands_do_what_they_say() {
    let image = bzimage(&[print("x"), await_button(), power_off()].concat());
    let Some(running) = start(&image, |config| config.cpus = 2) else {
        return;
    };
    let socket = running.folder.path().join("api");
    let server = serve(
        Arc::clone(&running.info),
        running.control.clone(),
        Arc::clone(&running.passthrough),
        Some(socket.clone()),
    )
    .unwrap();
    running.wait_for("x");
    on_runtime(async {
        let client = Client::new(&socket);
        // The guest may speak before the thread that started its CPUs has said that they run.
        let mut info = client.info().await.unwrap();
        while info.state == State::Starting {
            info = client.info().await.unwrap();
        }
        assert_eq!(
            (info.name.as_str(), info.cpus, info.memory),
            ("tiny", 2, 32 << 20)
        );
        assert_eq!(
            (info.state, info.pid, info.resets),
            (State::Running, std::process::id(), 0)
        );
        assert_eq!(info.devices, []);
        let absent: Source = "0000:ff:1f.7".parse().unwrap();
        let error = client
            .add_devices(std::slice::from_ref(&absent))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("0000:ff:1f.7 refused: there is none"), "{error}");
        let error = client.remove_device("0000:ff:1f.7", false).await.unwrap_err();
        assert!(error.to_string().contains("this VM has no device"), "{error}");
        let passed: Source = "fd=3".parse().unwrap();
        let error = client
            .add_devices(&[absent, passed])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("by its address"), "{error}");
        client.command(Command::Pause).await.unwrap();
        assert_eq!(client.info().await.unwrap().state, State::Paused);
        client.command(Command::Resume).await.unwrap();
        client.command(Command::Reset).await.unwrap();
    });
    running.wait_for("xx");
    on_runtime(async {
        let client = Client::new(&socket);
        assert_eq!(client.info().await.unwrap().resets, 1);
        client.command(Command::Shutdown).await.unwrap();
    });
    let (control, (ending, _folder)) = (running.control.clone(), running.end_keeping_files());
    assert_eq!(ending, Ending::PoweredOff);
    assert_eq!(control.state(), State::Ended);
    on_runtime(async {
        let error = Client::new(&socket).command(Command::Reset).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Refused(why) if why.contains("has ended")),
            "{error}"
        );
    });
    drop(server);
    assert!(!socket.exists());
    let error = on_runtime(Client::new(&socket).info()).unwrap_err();
    assert!(matches!(error, ClientError::Connect(..)));
}

#[test]
fn a_second_server_on_the_socket_is_refused() {
    let Some(running) = start(&bzimage(&halt()), |_| ()) else {
        return;
    };
    let socket = running.folder.path().join("api");
    let server = serve(
        Arc::clone(&running.info),
        running.control.clone(),
        Arc::clone(&running.passthrough),
        Some(socket.clone()),
    )
    .unwrap();
    let second = serve(
        Arc::clone(&running.info),
        running.control.clone(),
        Arc::clone(&running.passthrough),
        Some(socket.clone()),
    );
    assert!(matches!(second, Err(ApiError::Socket(_))));
    assert_eq!(on_runtime(Client::new(&socket).info()).unwrap().name, "tiny");
    running.control.command(Command::PowerOff).unwrap();
    assert_eq!(running.end(), Ending::Stopped);
    drop(server);
}
