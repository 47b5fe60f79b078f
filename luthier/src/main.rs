//! The `luthier` binary: every role of the service and the operator's commands, one subcommand each.

mod alias;
mod audit;
mod cli;
mod key;
mod logging;
mod memory;
mod model;
mod opened;
mod organization;
mod progress;
mod quickstart;
mod roles;
mod secrets;
mod up;
mod worker_process;

use clap::Parser;

fn main() -> std::process::ExitCode {
    // aws-lc-rs is the only provider in the tree; naming it keeps every TLS client from guessing.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("error: a TLS provider was installed twice — a bug in main");
        return std::process::ExitCode::FAILURE;
    }
    if let Err(error) = leave_no_core() {
        eprintln!("warning: a crash may leave this process's memory in a file: {error}");
    }
    let command = cli::Cli::parse().command;
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start the async runtime: {e}");
            return std::process::ExitCode::FAILURE;
        }
    };
    runtime.spawn(memory::record());
    match runtime.block_on(run(command)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Memory holds keys, conversations and weights: a crash must not write it to a disk.
fn leave_no_core() -> rustix::io::Result<()> {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
}

async fn run(command: cli::Command) -> anyhow::Result<()> {
    use cli::{
        AdminKeyCommand, AliasCommand, AuditCommand, Command, KeyCommand, ModelCommand,
        OrganizationCommand, SecretsCommand, UserCommand,
    };
    match command {
        Command::Quickstart(options) => quickstart::run(options).await,
        Command::Up(options) => up::run(options).await,
        Command::Api(options) => roles::api(&options).await,
        Command::Scheduler(role) => roles::scheduler(&role.config).await,
        Command::Worker(options) => roles::worker(&options).await,
        Command::Migrate(role) => roles::migrate(&role.config).await,
        Command::Key {
            command: KeyCommand::Create(order),
        } => {
            println!("{}", key::create(&order).await?);
            Ok(())
        }
        Command::Organization { command } => match command {
            OrganizationCommand::Create { slug, name, place } => {
                organization::create_command(&place, &slug, name.as_deref()).await
            }
            OrganizationCommand::List { place } => organization::list_command(&place).await,
        },
        Command::AdminKey {
            command: AdminKeyCommand::Create(order),
        } => {
            println!("{}", key::create_admin(&order).await?);
            Ok(())
        }
        Command::User {
            command: UserCommand::Add(order),
        } => {
            println!("{}", key::add_user(&order).await?);
            Ok(())
        }
        Command::Audit {
            command:
                AuditCommand::Verify {
                    organization,
                    place,
                },
        } => {
            println!("{}", audit::verify(&organization, &place).await?);
            Ok(())
        }
        Command::Model { command } => match command {
            ModelCommand::Pull { name, place } => model::pull_command(&place, &name).await,
            ModelCommand::Add { name, path, place } => {
                model::add_command(&place, &name, &path).await
            }
            ModelCommand::List { place } => model::list_command(&place).await,
        },
        Command::Alias { command } => match command {
            AliasCommand::Add { name, model, place } => {
                alias::add_command(&place, &name, &model).await
            }
            AliasCommand::List { place } => alias::list_command(&place).await,
            AliasCommand::Remove { name, place } => alias::remove_command(&place, &name).await,
        },
        Command::Secrets {
            command: SecretsCommand::Reseal { place },
        } => secrets::reseal_command(&place).await,
        Command::Openapi => {
            // It ends with its line break.
            print!("{}", api::openapi_document());
            Ok(())
        }
    }
}
