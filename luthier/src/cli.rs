//! The command line: what can be asked of the binary. Other tools rely on these names.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("LUTHIER_COMMIT"), ")");

/// Luthier: fine-tune and serve your own models behind OpenAI's API.
#[derive(Parser)]
#[command(name = "luthier", version = VERSION, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Fetch a small model, start the service, fine-tune on real data, and compare before and after.
    Quickstart(QuickstartOptions),
    /// Run the whole service on this machine: SQLite, a directory, one worker; no broker.
    Up(UpOptions),
    /// Run the HTTP API.
    Api(ApiRole),
    /// Run the scheduler and its door for workers.
    Scheduler(Role),
    /// Run a worker: trains and generates on this machine's device.
    Worker(WorkerOptions),
    /// Bring the database to this version's schema.
    Migrate(Role),
    /// Make and list the organizations that share this installation.
    Organization {
        #[command(subcommand)]
        command: OrganizationCommand,
    },
    /// Make API keys of projects.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Make keys that administer an organization: its projects, users and keys.
    AdminKey {
        #[command(subcommand)]
        command: AdminKeyCommand,
    },
    /// Add users, whom keys and memberships can belong to.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Check the log of what administrators did.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Install and list base models.
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Give base models other names, for every project.
    Alias {
        #[command(subcommand)]
        command: AliasCommand,
    },
    /// Keep the secrets of tenants.
    Secrets {
        #[command(subcommand)]
        command: SecretsCommand,
    },
    /// Print the OpenAPI document.
    Openapi,
}

#[derive(Args)]
pub struct QuickstartOptions {
    /// Where everything is kept [default: $XDG_DATA_HOME/luthier or ~/.local/share/luthier].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// The base model to tune.
    #[arg(long, value_name = "NAME", default_value = crate::model::QUICKSTART_MODEL)]
    pub model: String,
    /// Chat examples as JSONL; the last tenth (at most 40) is held out [default: the support tickets that come along].
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Passes over the training data.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=50))]
    pub epochs: u32,
    /// Stop the service at the end instead of staying up.
    #[arg(long)]
    pub exit: bool,
    /// Write scores, seconds per phase, tokens/s and peak memory here.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

#[derive(Args)]
pub struct UpOptions {
    /// Where everything is kept [default: $XDG_DATA_HOME/luthier or ~/.local/share/luthier].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A configuration file over the embedded defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Allow a public address without TLS, for TLS that ends in front.
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Args)]
pub struct ApiRole {
    #[command(flatten)]
    pub role: Role,
    /// Allow a public address without TLS, for TLS that ends in front.
    #[arg(long)]
    pub insecure: bool,
}

#[derive(Args)]
pub struct Role {
    /// The configuration file; see deploy/config.example.toml.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct WorkerOptions {
    /// The configuration file; see deploy/config.example.toml.
    #[arg(long, value_name = "FILE", required_unless_present = "data_dir")]
    pub config: Option<PathBuf>,
    /// The worker of the `up` that owns this directory; started by it.
    #[arg(long, value_name = "DIR", hide = true)]
    pub data_dir: Option<PathBuf>,
    /// Exit at once when standard input ends: a worker must not outlive the `up` that started it.
    #[arg(long, hide = true)]
    pub stop_with_parent: bool,
}

#[derive(Subcommand)]
pub enum OrganizationCommand {
    /// Make an organization and print its id; `admin-key create --organization SLUG` is the way into it.
    Create {
        /// Stands in the names of its tuned models: ft:…:SLUG:….
        slug: String,
        /// What people call it [default: the slug].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// List the organizations: slug, id and name.
    List {
        #[command(flatten)]
        place: Place,
    },
}

/// The organization that a command is about.
#[derive(Args)]
pub struct InOrganization {
    /// The organization, by its slug.
    #[arg(long, value_name = "SLUG", default_value = store::projects::DEFAULT_ORGANIZATION)]
    pub organization: String,
}

#[derive(Subcommand)]
pub enum KeyCommand {
    /// Print a new API key of a project; it is shown this once.
    Create(KeyOrder),
}

#[derive(Args)]
pub struct KeyOrder {
    /// The project's name; `default` exists from the start.
    #[arg(long, value_name = "NAME")]
    pub project: String,
    /// What to call the key.
    #[arg(long, value_name = "NAME", default_value = "command line")]
    pub name: String,
    /// Make it the key of this user, a member of the project: it opens as long as the user is one [default: nobody's].
    #[arg(long, value_name = "EMAIL")]
    pub user: Option<String>,
    /// Restrict the key to this scope, such as `api.files.read`; may be repeated. `api.read` reads everything [default:
    /// everything].
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    #[command(flatten)]
    pub lifetime: Lifetime,
    #[command(flatten)]
    pub organization: InOrganization,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Subcommand)]
pub enum AdminKeyCommand {
    /// Print a new key for `/v1/organization`; it is shown this once.
    Create(AdminKeyOrder),
}

#[derive(Args)]
pub struct AdminKeyOrder {
    /// What to call the key.
    #[arg(long, value_name = "NAME", default_value = "command line")]
    pub name: String,
    /// Make it the key of this owner of the organization: it opens as long as the user is one [default: nobody's].
    #[arg(long, value_name = "EMAIL")]
    pub user: Option<String>,
    #[command(flatten)]
    pub lifetime: Lifetime,
    #[command(flatten)]
    pub organization: InOrganization,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Subcommand)]
pub enum UserCommand {
    /// Add a user to an organization and print its id. It has no login: it is whom keys can belong to.
    Add(UserOrder),
}

#[derive(Args)]
pub struct UserOrder {
    #[arg(value_name = "EMAIL")]
    pub email: String,
    /// What to call the user [default: the address].
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// `owner`, who may administer the organization, or `reader`.
    #[arg(long, value_name = "ROLE", default_value = "reader")]
    pub role: String,
    #[command(flatten)]
    pub organization: InOrganization,
    #[command(flatten)]
    pub place: Place,
}

#[derive(Subcommand)]
pub enum AuditCommand {
    /// Follow the chain of hashes: an entry that was changed or taken out is named.
    Verify {
        #[command(flatten)]
        organization: InOrganization,
        #[command(flatten)]
        place: Place,
    },
}

/// How long a key opens.
#[derive(Args)]
pub struct Lifetime {
    /// Let the key expire after so many days [default: never].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub expires_in_days: Option<u32>,
}

#[derive(Subcommand)]
pub enum ModelCommand {
    /// Download and install a base model: a name this version knows, or `owner/repository` on the Hugging Face hub.
    Pull {
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Install a base model from a Hugging Face folder or a GGUF file.
    Add {
        name: String,
        path: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// List the installed base models.
    List {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Subcommand)]
pub enum AliasCommand {
    /// Let a name, such as gpt-4o-mini-2024-07-18, stand for a base model.
    Add {
        name: String,
        model: String,
        #[command(flatten)]
        place: Place,
    },
    /// List the names and what they stand for.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Let a name stand for nothing any more.
    Remove {
        name: String,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Subcommand)]
pub enum SecretsCommand {
    /// Seal with secrets.encryption_key what an older key sealed.
    Reseal {
        #[command(flatten)]
        place: Place,
    },
}

/// Which installation a command is about.
#[derive(Args, Clone)]
#[group(multiple = false)]
pub struct Place {
    /// The data directory of the embedded form.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The configuration file of the production form.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `$XDG_DATA_HOME/luthier`, else `~/.local/share/luthier`, else `./luthier-data`.
pub fn default_data_dir() -> PathBuf {
    let xdg = std::env::var_os("XDG_DATA_HOME")
        .filter(|v| !v.is_empty())
        .map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    xdg.or_else(home)
        .map_or_else(|| PathBuf::from("luthier-data"), |dir| dir.join("luthier"))
}
