//! Runs the two programs that own the packet filter's formats, `nft` and
//! `iptables`.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::Cause;
use crate::sys::priority::go_first;
use crate::sys::turn;

/// They answer in milliseconds; `iptables` may wait for its lock.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a program advertised.
pub(crate) struct Answer {
    pub(crate) ok: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs a program to its end. It runs in the calling thread's namespace.
pub(crate) async fn run(
    program: &'static str,
    args: &[&str],
    input: &[u8],
) -> Result<Answer, Cause> {
    let failed = |error: std::io::Error| Cause::Program {
        program,
        message: error.to_string(),
    };
    // One that is given up is not waited for.
    let turn = turn::take().await;
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(id) = child.id() {
        go_first(id);
        turn.give_to(id);
    }
    let stdin = child.stdin.take();
    let answer = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(input).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(ANSWER_WITHIN, answer)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    Ok(Answer {
        ok: output.status.success(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs a program that must succeed.
pub(crate) async fn run_ok(
    program: &'static str,
    args: &[&str],
    input: &[u8],
) -> Result<Vec<u8>, Cause> {
    let answer = run(program, args, input).await?;
    if answer.ok {
        Ok(answer.stdout)
    } else {
        Err(refused(program, &answer))
    }
}

/// What a program said when it refused.
pub(crate) fn refused(program: &'static str, answer: &Answer) -> Cause {
    Cause::Program {
        program,
        message: answer.stderr.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_of_one_agent_do_not_run_at_once() {
        let name = format!("kontena-overlay-program-{}", std::process::id());
        let there = std::env::temp_dir().join(name);
        // Only one can make it, and it is there while its program runs.
        let script = format!("mkdir {0} && sleep 0.05 && rmdir {0}", there.display());
        let args = ["-c", &script];
        let one = || run_ok("sh", &args, &[]);
        let all = tokio::join!(one(), one(), one(), one());
        for done in [all.0, all.1, all.2, all.3] {
            done.expect("nobody else runs");
        }
    }

    #[tokio::test]
    async fn a_program_that_refuses_says_why() {
        let script = "echo that is no table >&2; exit 1";
        let refused = run_ok("sh", &["-c", script], &[]).await.unwrap_err();
        assert_eq!(refused.to_string(), "sh: that is no table");
        let missing = run("kontena-is-no-program", &[], &[]).await;
        assert!(missing.is_err());
    }
}
