//! `/v1/moderations`.

use serde_json::json;

use crate::support::App;

#[tokio::test]
async fn a_moderation_is_refused_with_what_to_do_instead() {
    let app = App::start().await;
    for body in [json!({"input": "x"}), json!({"anything": 1})] {
        let reply = app.post("/v1/moderations", body).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status.as_u16(), &error["code"]),
            (400, &json!("unsupported_endpoint"))
        );
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains("/v1/chat/completions")
        );
    }
}
