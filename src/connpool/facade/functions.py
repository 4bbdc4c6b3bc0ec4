"""The functions that each server brings along, as far as they matter to a session.

Named here are those that leave nothing in it, whatever their arguments; a function that nobody
named may do anything.  What runs SQL that it is given as text (PostgreSQL's query_to_xml, ts_stat)
is not harmless.  Sequences count as harmless: nextval() leaves what an INSERT leaves.
"""

from __future__ import annotations

from typing import Final


def names(text: str) -> frozenset[str]:
    """Return the words of a text; a table written so is read by people."""
    return frozenset(text.split())


GRAMMAR: Final = names("""
    all and any array as between binary by case conflict cross cube distinct div else escape except exists
    explain filter for from full group grouping having ilike in inner insert intersect into is join lateral
    left like limit materialized minus mod natural not null offset on only or order outer over overlaps
    recursive regexp replace returning right rlike rollup row select set sets similar some straight_join
    table then to union unique update using values when where window with within xor
""")
"""Words that may stand before a parenthesis, and call nothing."""

DEFINITION: Final = names("""
    add bloom brin btree check cluster column columns constraint default enum exclude fulltext generated gin
    gist hash include index key list partition partitions primary range references rtree spatial spgist sql
    stored subpartition than unique using virtual
""")
"""The same within CREATE and ALTER."""

TYPES: Final = names("""
    bigint bit blob bpchar char character datetime dec decimal double enum fixed float int integer interval
    mediumint nchar number numeric nvarchar precision real smallint text time timestamp timestamptz timetz
    tinyint uuid varbinary varbit varchar varchar2 varying vector year zone
""")
"""Types that take a length or a precision."""

POSTGRESQL: Final = names("""
    abbrev abs acos acosd acosh age any_value area array_agg array_dims array_fill array_length array_lower
    array_ndims array_position array_positions array_remove array_replace array_reverse array_sample
    array_shuffle array_sort array_to_json array_to_string array_to_tsvector array_upper ascii asin asind
    asinh atan atan2 atan2d atand atanh avg bit bit_and bit_count bit_length bit_or bit_xor bool bool_and
    bool_or bound_box box bpchar broadcast bytea cardinality casefold cbrt ceil ceiling center char
    char_length character_length chr cidr circle clock_timestamp col_description concat concat_ws convert
    convert_from convert_to corr cos cosd cosh cot cotd count covar_pop covar_samp crc32 crc32c cume_dist
    current_database current_query current_schema current_schemas current_setting database_to_xml
    database_to_xml_and_xmlschema database_to_xmlschema date date_add date_bin date_larger date_part
    date_smaller date_subtract date_trunc datemultirange daterange decode degrees dense_rank diagonal
    diameter div encode enum_first enum_last enum_range erf erfc every exp extract factorial family
    first_value float4 float8 floor format format_type gamma gcd gen_random_uuid generate_series
    generate_subscripts get_bit get_byte get_current_ts_config has_any_column_privilege has_column_privilege
    has_database_privilege has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege
    has_largeobject_privilege has_parameter_privilege has_schema_privilege has_sequence_privilege
    has_server_privilege has_table_privilege has_tablespace_privilege has_type_privilege hashint4 hashint8
    hashtext hashtextextended height host hostmask inet_client_addr inet_client_port inet_merge
    inet_same_family inet_server_addr inet_server_port initcap int2 int4 int4multirange int4range int8
    int8multirange int8range interval is_normalized isclosed isempty isfinite ishorizontal isopen isparallel
    isperp isvertical json_agg json_agg_strict json_array_elements json_array_elements_text
    json_array_length json_build_array json_build_object json_each json_each_text json_object
    json_object_agg json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict
    json_object_keys json_populate_record json_populate_recordset json_strip_nulls json_to_record
    json_to_recordset json_to_tsvector json_typeof jsonb_agg jsonb_agg_strict jsonb_array_elements
    jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each
    jsonb_each_text jsonb_insert jsonb_object jsonb_object_agg jsonb_object_agg_strict
    jsonb_object_agg_unique jsonb_object_agg_unique_strict jsonb_object_keys jsonb_path_exists
    jsonb_path_exists_tz jsonb_path_match jsonb_path_match_tz jsonb_path_query jsonb_path_query_array
    jsonb_path_query_array_tz jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz
    jsonb_populate_record jsonb_populate_record_valid jsonb_populate_recordset jsonb_pretty jsonb_set
    jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof
    justify_days justify_hours justify_interval lag last_value lcm lead left length lgamma like line ln
    lo_close lo_creat lo_create lo_from_bytea lo_get lo_lseek lo_lseek64 lo_open lo_put lo_tell lo_tell64
    lo_truncate lo_truncate64 lo_unlink log log10 loread lower lower_inc lower_inf lowrite lpad lseg ltrim
    macaddr macaddr8 macaddr8_set7bit make_date make_interval make_time make_timestamp make_timestamptz
    masklen max md5 min min_scale mod mode money multirange name netmask network nextval normalize now
    npoints nth_value ntile num_nonnulls num_nulls numeric nummultirange numnode numrange obj_description
    octet_length oid oidvectortypes overlaps overlay parse_ident path percent_rank percentile_cont
    percentile_disc pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_available_extension_versions
    pg_available_extensions pg_backend_pid pg_basetype pg_blocking_pids pg_cancel_backend pg_client_encoding
    pg_collation_for pg_collation_is_visible pg_column_compression pg_column_is_updatable pg_column_size
    pg_conversion_is_visible pg_current_snapshot pg_current_wal_flush_lsn pg_current_wal_insert_lsn
    pg_current_wal_lsn pg_current_xact_id pg_current_xact_id_if_assigned pg_database_size pg_describe_object
    pg_export_snapshot pg_extension_update_paths pg_function_is_visible pg_get_acl pg_get_constraintdef
    pg_get_expr pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments
    pg_get_function_result pg_get_function_sqlbody pg_get_functiondef pg_get_indexdef pg_get_keywords
    pg_get_object_address pg_get_partition_constraintdef pg_get_partkeydef pg_get_ruledef
    pg_get_serial_sequence pg_get_statisticsobjdef pg_get_statisticsobjdef_columns
    pg_get_statisticsobjdef_expressions pg_get_triggerdef pg_get_userbyid pg_get_viewdef pg_has_role
    pg_identify_object pg_identify_object_as_address pg_indexes_size pg_input_error_info pg_input_is_valid
    pg_is_in_recovery pg_is_other_temp_schema pg_is_wal_replay_paused pg_jit_available
    pg_last_committed_xact pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
    pg_listening_channels pg_lsn pg_my_temp_schema pg_notification_queue_usage pg_notify
    pg_opclass_is_visible pg_operator_is_visible pg_opfamily_is_visible pg_partition_ancestors
    pg_partition_root pg_partition_tree pg_postmaster_start_time pg_relation_filenode pg_relation_filepath
    pg_relation_is_publishable pg_relation_is_updatable pg_relation_size pg_replication_origin_oid
    pg_sequence_last_value pg_sequence_parameters pg_settings_get_flags pg_size_bytes pg_size_pretty
    pg_sleep pg_sleep_for pg_sleep_until pg_snapshot_xip pg_snapshot_xmax pg_snapshot_xmin
    pg_split_walfile_name pg_stat_get_activity pg_statistics_obj_is_visible pg_table_is_visible
    pg_table_size pg_tablespace_databases pg_tablespace_location pg_tablespace_size pg_terminate_backend
    pg_timezone_names pg_total_relation_size pg_trigger_depth pg_try_advisory_xact_lock
    pg_try_advisory_xact_lock_shared pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible
    pg_ts_template_is_visible pg_type_is_visible pg_typeof pg_visible_in_snapshot pg_wal_lsn_diff
    pg_walfile_name pg_walfile_name_offset pg_xact_commit_timestamp pg_xact_status phraseto_tsquery pi
    plainto_tsquery point polygon position pow power quote_ident quote_literal quote_nullable radians radius
    random random_normal range_agg range_intersect_agg range_merge rank regclass regexp_count regexp_instr
    regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table
    regexp_substr regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy
    regr_syy repeat replace reverse right round row_number row_security_active row_to_json rpad rtrim scale
    schema_to_xml schema_to_xml_and_xmlschema schema_to_xmlschema set_bit set_byte set_masklen setval
    setweight sha224 sha256 sha384 sha512 shobj_description sign sin sind sinh slope split_part sqrt
    statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip
    strpos substr substring sum system_user table_to_xml table_to_xml_and_xmlschema table_to_xmlschema tan
    tand tanh text time timeofday timestamp timestamptz timetz timezone to_ascii to_bin to_char to_date
    to_hex to_json to_jsonb to_number to_oct to_regclass to_regcollation to_regnamespace to_regoper
    to_regoperator to_regproc to_regprocedure to_regrole to_regtype to_regtypemod to_timestamp to_tsquery
    to_tsvector transaction_timestamp translate trim_array trim_scale trunc ts_debug ts_delete ts_filter
    ts_headline ts_lexize ts_parse ts_rank ts_rank_cd ts_token_type tsmultirange tsrange tstzmultirange
    tstzrange tsvector_to_array txid_current txid_current_if_assigned txid_current_snapshot
    txid_snapshot_xip txid_snapshot_xmax txid_snapshot_xmin txid_status txid_visible_in_snapshot unistr
    unnest upper upper_inc upper_inf uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7 var_pop
    var_samp varbit varchar variance version websearch_to_tsquery width width_bucket xid xml
    xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlagg xmlcomment xmlconcat2
    xmlexists xmltext xmlvalidate xpath xpath_exists
""")
"""Each of them is in the pg_proc of PostgreSQL 18; a test looks."""

POSTGRESQL_GRAMMAR: Final = names("""
    cast coalesce collation current_time current_timestamp exists greatest grouping json json_array
    json_arrayagg json_exists json_objectagg json_query json_scalar json_serialize json_table json_value
    least localtime localtimestamp merge_action nullif position treat trim xmlattributes xmlconcat
    xmlelement xmlforest xmlparse xmlpi xmlroot xmlserialize xmltable
""")
"""Functions of PostgreSQL's grammar, which are not in pg_proc by this name."""

MYSQL: Final = names("""
    abs acos adddate addtime aes_decrypt aes_encrypt any_value ascii asin atan atan2 avg bin bin_to_uuid
    bit_and bit_count bit_length bit_or bit_xor cast ceil ceiling char_length character_length charset
    coalesce coercibility collation compress concat concat_ws connection_id conv convert convert_tz cos cot
    count crc32 crc32c cume_dist curdate current_date current_role current_time current_timestamp
    current_user curtime database date date_add date_format date_sub datediff day dayname dayofmonth
    dayofweek dayofyear decode default degrees dense_rank des_decrypt des_encrypt elt encode encrypt exp
    export_set extract extractvalue field find_in_set first_value floor format format_bytes format_pico_time
    from_base64 from_days from_unixtime geometrycollection geomfromtext get_format greatest group_concat
    grouping hex hour if ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa insert instr interval is_free_lock
    is_ipv4 is_ipv4_compat is_ipv4_mapped is_ipv6 is_used_lock is_uuid isnull json_array json_array_append
    json_array_insert json_array_intersect json_arrayagg json_compact json_contains json_contains_path
    json_depth json_detailed json_equals json_exists json_extract json_insert json_keys json_length
    json_loose json_merge json_merge_patch json_merge_preserve json_normalize json_object json_objectagg
    json_overlaps json_pretty json_query json_quote json_remove json_replace json_schema_valid json_search
    json_set json_storage_free json_storage_size json_table json_type json_unquote json_valid json_value lag
    last_day last_value lcase lead least left length linestring ln load_file localtime localtimestamp locate
    log log10 log2 lower lpad ltrim make_set makedate maketime max mbrcontains mbrwithin md5 median member
    microsecond mid min minute mod month monthname multilinestring multipoint multipolygon name_const
    natural_sort_key now nth_value ntile nullif nvl nvl2 oct octet_length ord percent_rank percentile_cont
    percentile_disc period_add period_diff pi point polygon position pow power quarter quote radians rand
    random_bytes rank regexp_instr regexp_like regexp_replace regexp_substr repeat replace reverse right
    round row_number rpad rtrim schema sec_to_time second session_user sformat sha sha1 sha2 sign sin sleep
    soundex space sqrt st_area st_asbinary st_asgeojson st_astext st_aswkb st_aswkt st_buffer st_centroid
    st_contains st_crosses st_difference st_dimension st_disjoint st_distance st_distance_sphere st_equals
    st_geometrytype st_geomfromgeojson st_geomfromtext st_geomfromwkb st_intersection st_intersects
    st_isvalid st_latitude st_length st_longitude st_makeenvelope st_numpoints st_overlaps st_pointfromtext
    st_simplify st_srid st_touches st_transform st_union st_within st_x st_y std stddev stddev_pop
    stddev_samp str_to_date strcmp subdate substr substring substring_index subtime sum sys_guid sysdate
    system_user tan time time_format time_to_sec timediff timestamp timestampadd timestampdiff to_base64
    to_char to_days to_seconds trim truncate ucase uncompress uncompressed_length unhex unix_timestamp
    updatexml upper user utc_date utc_time utc_timestamp uuid uuid_short uuid_to_bin
    validate_password_strength values var_pop var_samp variance version week weekday weekofyear
    weight_string year yearweek
""")
"""MySQL and MariaDB."""

SQLITE: Final = names("""
    abs acos acosh asin asinh atan atan2 atanh avg cast ceil ceiling char coalesce concat concat_ws cos cosh
    count cume_dist current_date current_time current_timestamp date datetime degrees dense_rank exp
    first_value floor format generate_series glob group_concat hex if ifnull iif instr json json_array
    json_array_insert json_array_length json_each json_error_position json_extract json_group_array
    json_group_object json_insert json_object json_patch json_pretty json_quote json_remove json_replace
    json_set json_tree json_type json_valid jsonb jsonb_array jsonb_each jsonb_extract jsonb_group_array
    jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove jsonb_replace jsonb_set jsonb_tree
    julianday lag last_value lead length like likelihood likely ln log log10 log2 lower ltrim max median min
    mod nth_value ntile nullif octet_length percent_rank percentile percentile_cont percentile_disc pi pow
    power printf quote radians raise random randomblob rank replace round row_number rtrim sign sin sinh
    soundex sqlite_compileoption_get sqlite_compileoption_used sqlite_source_id sqlite_version sqrt strftime
    string_agg substr substring subtype sum tan tanh time timediff total trim trunc typeof unhex unicode
    unistr unistr_quote unixepoch unlikely upper zeroblob
""")
"""SQLite, with its extensions for JSON and mathematics."""
