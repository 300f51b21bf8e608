//! Lists of agents in a registry without pages: it ignores `limit` and `cursor`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use super::support::Session;

/// Starts a registry that answers every request with all of its agents. Returns its URL.
fn start_registry(ids: &[String]) -> String {
    let agents: Vec<_> = ids.iter().map(|id| json!({"agent_id": id, "status": "active"})).collect();
    let body = Value::from(agents).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let lines = BufReader::new(connection.try_clone().unwrap()).lines();
            lines.map_while(Result::ok).find(String::is_empty);
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            // The client may have closed the connection.
            let _ = connection.write_all((head + &body).as_bytes());
        }
    });
    url
}

/// Returns the ids on all pages, as a model that follows the cursors gets them.
fn pages(session: &mut Session, limit: usize) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut arguments = json!({"limit": limit});
    loop {
        let page = session.result("list_agents", &arguments);
        let agents = page["agents"].as_array().unwrap();
        pages.push(agents.iter().map(|agent| agent["agent_id"].as_str().unwrap().to_owned()).collect());
        match page.get("next_cursor") {
            Some(cursor) if pages.len() < 10 => arguments["cursor"] = cursor.clone(),
            Some(cursor) => panic!("the pages do not end: {pages:?}, then {cursor}"),
            None => return pages,
        }
    }
}

#[test]
fn pages_of_a_registry_without_pages_advance_and_end() {
    let ids: Vec<_> = (0..25).map(|number| format!("agent-{number:02}")).collect();
    let mut others_first = ids.clone();
    others_first.reverse();
    for order in [&ids, &others_first] {
        let mut session = Session::start(&start_registry(order), &[]);
        for (limit, count) in [(10, 3), (24, 2), (25, 1), (50, 1)] {
            let pages = pages(&mut session, limit);
            assert_eq!((pages.len(), pages.concat()), (count, ids.clone()), "{limit}");
        }
        // A later page may be longer than all agents together.
        let rest = session.result("list_agents", &json!({"limit": 50, "cursor": "agent-19"}));
        assert_eq!((rest["agents"].as_array().unwrap().len(), rest.get("next_cursor")), (5, None));
    }
}
