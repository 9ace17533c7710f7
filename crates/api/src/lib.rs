//! Wire types: alcazar.ca.v1, alcazar.mesh.v1, Istio's CSR API, Envoy's SDS and ADS, and their conversions.
