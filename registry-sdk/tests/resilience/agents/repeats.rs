//! How an agent recognizes that it gets a task again.

use std::collections::HashSet;

use super::delegate;
use crate::scene::Scene;
use crate::support::Reply;

const IDS: [&str; 3] = ["first", "second", "third"];

#[tokio::test(start_paused = true)]
async fn all_attempts_of_a_delegation_carry_one_idempotency_key() {
    let scene = Scene::ranked(&IDS).await;
    scene.set("first", Reply::Close);
    scene.set("second", Reply::Answer(503, "", "no"));
    let orchestrator = scene.orchestrator();
    let mut keys = HashSet::new();
    for round in 0..3 {
        assert_eq!(delegate(&orchestrator).await.as_deref(), Ok("third"));
        let sent = IDS.map(|id| scene.tasks(id)[round].header("idempotency-key").map(str::to_owned));
        let key = sent[0].clone().expect("a key");
        assert_eq!(sent, [Some(key.clone()), Some(key.clone()), Some(key.clone())]);
        // A string of structured fields (RFC 8941), in quotes.
        let text = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
        assert!(text.is_some_and(|text| text.len() >= 16 && text.is_ascii()), "{key}");
        assert!(keys.insert(key), "each delegation has its own key");
    }
}
