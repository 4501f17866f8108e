//! Joining a Master with a public certificate. There is none here, but an agent
//! shows by its refusal of the stack's certificate that it knows authorities.

use std::time::Duration;

use kontena_tests::{Settings, docker, until};

#[tokio::test]
async fn an_agent_without_a_ca_goes_by_the_authorities_of_its_image() {
    let project = Settings::read().project;
    let name = format!("{project}-agent-without-ca");
    // An earlier test may have left it.
    docker(&["rm", "--force", &name]).await;
    let network = format!("{project}_wan");
    let image = format!("kontena/agent:{project}");
    let mut args = vec!["run", "--detach", "--name", &name, "--network", &network];
    for setting in [
        "KONTENA_URI=wss://edge:443",
        "KONTENA_TOKEN=token",
        "KONTENA_PUBLIC_IP=192.0.2.1",
        "KONTENA_NO_ENGINE=1",
    ] {
        args.extend(["--env", setting]);
    }
    // As `kontena-join` runs it: without them there is no overlay to bring up.
    args.extend(["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"]);
    // Like the hosts it goes with the stack.
    let label = format!("com.docker.compose.project={project}");
    args.extend(["--label", &label, &image]);
    docker(&args).await.must();
    let within = Duration::from_secs(30);
    until(
        within,
        "the certificate is refused by its issuer",
        async || {
            let log = docker(&["logs", &name]).await.stderr;
            if log.contains("UnknownIssuer") {
                Ok(())
            } else {
                Err(log)
            }
        },
    )
    .await;
    docker(&["rm", "--force", &name]).await.must();
}
