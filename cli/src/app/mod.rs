//! The applications of the sample shop: plain HTTP on loopback, as if nothing else existed.
//!
//! They know nothing of certificates. They listen on `PORT`, call others through `http_proxy`, and repeat in their
//! answers whom their proxy says the caller is (`x-forwarded-client-cert`), so that a viewer sees it.

mod call;
mod shop;

use std::process::ExitCode;
use std::time::Duration;

use alcazar_service::environment::variable;
use alcazar_service::process::{self, Failure};
use alcazar_service::{Readiness, Shutdown};
use axum::http::Uri;
use tokio::net::TcpListener;

use self::call::Callers;

/// Which application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    Frontend,
    Catalog,
    Reviews,
    Payments,
    Nightly,
}

/// Serves one of the applications until a signal.
pub(crate) fn run(name: Name) -> ExitCode {
    process::run("alcazar app", Duration::from_secs(2), |shutdown, _: Readiness| serve(name, shutdown))
}

async fn serve(name: Name, shutdown: Shutdown) -> Result<(), Failure> {
    let port: u16 = variable("PORT").ok_or("PORT is not set: it says where to listen")?.parse()?;
    let proxy: Option<Uri> = variable("http_proxy").map(|uri| uri.parse()).transpose()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let callers = Callers::through(proxy.and_then(|uri| uri.authority().cloned()));
    let router = match name {
        Name::Frontend => shop::frontend(callers),
        Name::Catalog => shop::catalog(),
        Name::Reviews => shop::reviews(),
        Name::Payments => shop::payments(),
        Name::Nightly => shop::nightly(callers, &shutdown),
    };
    let end = async move { shutdown.cancelled().await };
    Ok(axum::serve(listener, router).with_graceful_shutdown(end).await?)
}
