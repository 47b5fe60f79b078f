//! How handlers are given who calls: [`Caller`] on the routes of projects, [`Admin`] on those of organisations.

use domain::scope::Level;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaSecurityScheme, Registry};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use super::{Admin, Caller, Principal, no_key};
use crate::access;

const PROJECT_KEY: &str = "ApiKey";
const ADMIN_KEY: &str = "AdminApiKey";

fn register(registry: &mut Registry, name: &'static str, description: &'static str) {
    registry.create_security_scheme(
        name,
        MetaSecurityScheme {
            ty: "http",
            description: Some(description),
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        },
    );
}

impl<'a> ApiExtractor<'a> for Caller {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let description = "A project's API key: `Authorization: Bearer sk-proj-…`; or a token (JWT) of an issuer that the operator trusts.";
        register(registry, PROJECT_KEY, description);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![PROJECT_KEY]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        // The outermost middleware found the caller already.
        match request.extensions().get::<Principal>() {
            Some(Principal::Project(caller)) => Ok(caller.clone()),
            Some(Principal::Admin(_)) => Err(access::admin_elsewhere().into()),
            None => Err(no_key().into()),
        }
    }
}

impl<'a> ApiExtractor<'a> for Admin {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        let description = "An organization's admin key: `Authorization: Bearer sk-admin-…`.";
        register(registry, ADMIN_KEY, description);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![ADMIN_KEY]
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<Self::ParamType>,
    ) -> poem::Result<Self> {
        match request.extensions().get::<Principal>() {
            Some(Principal::Admin(admin)) => Ok(admin.clone()),
            Some(Principal::Project(_)) => Err(access::needs_admin_key(Level::Read).into()),
            None => Err(no_key().into()),
        }
    }
}
