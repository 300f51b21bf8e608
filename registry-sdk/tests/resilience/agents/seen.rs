//! The log of a delegation.

use super::{delegate, delegate_many};
use crate::logs::Logs;
use crate::scene::Scene;
use crate::support::Reply;

#[tokio::test(start_paused = true)]
async fn failover_is_logged() {
    let logs = Logs::record();
    let scene = Scene::ranked(&["broken", "well"]).await;
    scene.set("broken", Reply::Answer(500, "", "out of disk"));
    let orchestrator = scene.orchestrator();
    delegate(&orchestrator).await.unwrap();
    assert_eq!(logs.with("DEBUG selected").len(), 2);
    let failed = logs.with("INFO attempt failed");
    assert!(
        failed[0].contains(r#"agent_id="broken" attempt=1 kind="agent" error=status 500: out of disk"#),
        "{failed:?}"
    );
    assert_eq!(
        logs.with("INFO failed over"),
        [r#"INFO failed over agent_id="well" from="broken" attempt=2"#]
    );
    assert_eq!(logs.with("DEBUG done"), [r#"DEBUG done agent_id="well" attempts=2"#]);

    delegate_many(&orchestrator, 5).await;
    assert_eq!(logs.with("WARN ejected"), [r#"WARN ejected agent_id="broken" time=30s"#]);
    scene.set("well", Reply::Answer(400, "", "not like that"));
    delegate(&orchestrator).await.unwrap_err();
    assert!(logs.with("INFO not done")[0].contains("not like that"));
}
