//! Documents of the contract, written from the code that keeps it.

pub mod asyncapi;

/// The description of the HTTP API (`OpenAPI` 3.1, JSON), as served at `/v1/openapi.json`.
pub fn openapi() -> String {
    crate::doors::http::describe()
}
