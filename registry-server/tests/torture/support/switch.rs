//! A TCP proxy that can be switched from one database to another.

use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cluster::database_url;

/// An address that stays the same while the database behind it changes. Dropping it closes its connections.
pub(crate) struct Switch {
    port: u16,
    route: watch::Sender<Route>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy)]
struct Route {
    /// Port to which new connections are forwarded.
    target: Option<u16>,
    /// What happens to a connection when the route changes, and to a new one without a target.
    lost: Lost,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    Closed,
    /// The connection stays open, but nothing passes any more.
    Hung,
}

impl Switch {
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let route = watch::Sender::new(Route { target: Some(target), lost: Lost::Closed });
        let routes = route.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, routes.clone()));
            }
        });
        Self { port, route, _tasks: tasks }
    }

    pub(crate) fn database_url(&self) -> String {
        database_url(self.port)
    }

    /// Closes all connections, including new ones.
    pub(crate) fn close(&self) {
        self.route.send_replace(Route { target: None, lost: Lost::Closed });
    }

    /// Hangs all connections, including new ones. They stay open, but never recover.
    pub(crate) fn hang(&self) {
        self.route.send_replace(Route { target: None, lost: Lost::Hung });
    }

    /// Forwards new connections to another database. Hanging connections keep hanging.
    pub(crate) fn switch_to(&self, target: u16) {
        self.route.send_modify(|route| route.target = Some(target));
    }
}

async fn pass(mut client: TcpStream, mut routes: watch::Receiver<Route>) {
    let target = routes.borrow_and_update().target;
    if let Some(target) = target {
        let Ok(mut database) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut database) => {}
            _ = routes.changed() => hang_or_close(&routes).await,
        }
    } else {
        hang_or_close(&routes).await;
    }
}

/// Keeps a connection open forever if it should hang.
async fn hang_or_close(routes: &watch::Receiver<Route>) {
    if routes.borrow().lost == Lost::Hung {
        std::future::pending::<()>().await;
    }
}
